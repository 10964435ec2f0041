"""Numbers from tensors: no model, no plotting."""

from bloomlab.analysis.intervals import bootstrap_mean, standard_error
from bloomlab.analysis.rankings import rank_correlations, top_overlap
from bloomlab.analysis.roles import (
    attention_distance,
    attention_entropy,
    content_free_pattern,
    role_score,
)

__all__ = [
    "attention_distance",
    "attention_entropy",
    "bootstrap_mean",
    "content_free_pattern",
    "rank_correlations",
    "role_score",
    "standard_error",
    "top_overlap",
]
