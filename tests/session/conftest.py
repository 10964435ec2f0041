"""Tiny models that sessions look at."""

import copy

import pytest

import bloomlab as bl
from tests.tiny import pair


@pytest.fixture(scope="session")
def original(demo):
    _, model = pair(vocab_size=demo.config.vocab_size)
    return model


@pytest.fixture
def tiny(original, demo):
    """2 layers of 6 heads, random, with the packaged model's vocabulary."""
    model = copy.deepcopy(original)
    model.tokenizer = demo.tokenizer
    return model


@pytest.fixture
def session(tiny):
    return bl.Session(tiny, "The cat sat on the mat. The cat sat on")
