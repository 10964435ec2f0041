"""Numbers from tensors: no model, no plotting."""

from bloomlab.analysis.attribution import head_contributions, norm_scale, through_norm
from bloomlab.analysis.circuits import copying_score
from bloomlab.analysis.erasure import Eraser, inlp, leace, random_eraser
from bloomlab.analysis.intervals import bootstrap_mean, standard_error
from bloomlab.analysis.linear_probe import LinearProbe
from bloomlab.analysis.probes import OnlineCode, control_labels, online_code, selectivity
from bloomlab.analysis.rankings import rank_correlations, top_overlap
from bloomlab.analysis.roles import (
    attention_distance,
    attention_entropy,
    content_free_pattern,
    role_score,
)
from bloomlab.analysis.structural import (
    StructuralProbe,
    dspr,
    fit_structural_probe,
    structural_scores,
    tree_distances,
)

__all__ = [
    "Eraser",
    "LinearProbe",
    "OnlineCode",
    "StructuralProbe",
    "attention_distance",
    "attention_entropy",
    "bootstrap_mean",
    "content_free_pattern",
    "control_labels",
    "copying_score",
    "dspr",
    "fit_structural_probe",
    "head_contributions",
    "inlp",
    "leace",
    "norm_scale",
    "online_code",
    "random_eraser",
    "rank_correlations",
    "role_score",
    "selectivity",
    "standard_error",
    "structural_scores",
    "through_norm",
    "top_overlap",
    "tree_distances",
]
