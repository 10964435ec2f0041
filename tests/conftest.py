"""Shared fixtures."""

import pytest
import torch

import bloomlab as bl

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo():
    """The packaged model, in float32."""
    return bl.load("demo", device="cpu")
