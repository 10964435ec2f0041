import pytest
import torch

from bloomlab.errors import InputError, UnknownNameError
from bloomlab.widgets.saying import said


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InputError("no such thing"), "no such thing"),
        (UnknownNameError("mode", "x", ["y"]), str(UnknownNameError("mode", "x", ["y"]))),
        (KeyboardInterrupt(), "interrupted"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "(CUDA out of memory.)"),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), "out of memory"),
    ],
)
def test_an_error_to_expect_is_a_sentence_of_one_line(error, text):
    sentence, expected = said(error)
    assert expected
    assert text in sentence
    assert "\n" not in sentence or isinstance(error, InputError)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("x"), TypeError()])
def test_any_other_error_is_named_and_goes_on(error):
    sentence, expected = said(error)
    assert not expected
    assert sentence == f"unexpected: {type(error).__name__}: {error}"
