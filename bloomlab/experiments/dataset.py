"""The texts an experiment runs on; see `bloomlab.model.dataset`."""

from bloomlab.model.dataset import Dataset, dataset

__all__ = ["Dataset", "dataset"]
