"""The next token before and after the edits, as an answer."""

import time
from typing import Any

import numpy as np

from bloomlab.widgets.pack import trouble
from bloomlab.widgets.view import Answer


def next_answer(session: Any, k: int) -> Answer:
    """Labels, probabilities, logit changes and KL; time of the forward in ms."""
    session.run("clean").logits()
    run = session.run("edited")
    begun = time.perf_counter()
    found = session.next_tokens(k)
    forward = run.seconds + (time.perf_counter() - begun) / 2  # two unembeddings, one is the run's
    first = run.edits.first_difference(session.run("clean").edits)
    numbers = np.array([found["before"], found["after"], found["logits"]])
    return {
        **found,
        "forward_ms": 1e3 * forward,
        "first": first % session.n_layer,
        "trouble": trouble(numbers, "the next-token prediction"),
    }, []
