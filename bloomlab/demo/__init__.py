"""The packaged demo BLOOM: a small trained checkpoint and its model card."""
