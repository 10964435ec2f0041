"""Sessions that tests of views look through."""

import copy

import pytest
import torch

import bloomlab as bl
from tests.widgets.asking import PROMPT


@pytest.fixture
def session(demo):
    return bl.Session(demo, PROMPT)


@pytest.fixture
def broken(demo):
    """A session of a model that has a NaN in its fourth layer."""
    model = copy.deepcopy(demo)
    with torch.no_grad():
        model.blocks[3].attn.qkv.weight[0, 0] = torch.nan
    return bl.Session(model, PROMPT)
