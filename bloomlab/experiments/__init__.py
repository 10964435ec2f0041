"""Experiments: a model and an analysis, joined."""

from bloomlab.experiments.head_ablation import Ablation, ablate_heads
from bloomlab.experiments.head_gates import LearnedGates, learn_gates
from bloomlab.experiments.head_importance import head_importance
from bloomlab.experiments.head_order import HeadOrder, one_shot_order
from bloomlab.experiments.head_pruning import PruningCurve, prune_curve
from bloomlab.experiments.head_roles import head_roles
from bloomlab.experiments.head_search import prune_order
from bloomlab.experiments.importance import Agreement, Importance
from bloomlab.experiments.patching import Patching, patch_activations
from bloomlab.experiments.pruning_report import pruning_report
from bloomlab.experiments.results import Results, read_results, read_run
from bloomlab.experiments.speculative import Acceptance, draft_acceptance

__all__ = [
    "Ablation",
    "Acceptance",
    "Agreement",
    "HeadOrder",
    "Importance",
    "LearnedGates",
    "Patching",
    "PruningCurve",
    "Results",
    "ablate_heads",
    "draft_acceptance",
    "head_importance",
    "head_roles",
    "learn_gates",
    "one_shot_order",
    "patch_activations",
    "prune_curve",
    "prune_order",
    "pruning_report",
    "read_results",
    "read_run",
]
