"""Experiments: a model and an analysis, joined."""

from bloomlab.experiments.head_ablation import Ablation, ablate_heads

__all__ = ["Ablation", "ablate_heads"]
