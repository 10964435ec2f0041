"""Benchmarks against transformers on the same weights, interleaved in one process."""
