"""The packaged demo BLOOMs: small trained checkpoints, their card, and how they were made."""

from bloomlab.model.files import phases

__all__ = ["phases"]
