"""Figures: arrays in, a plotly `Figure` out. No model, no torch, nothing shown."""

from bloomlab.plots.alibi import (
    bias_figure,
    recency_figure,
    score_figure,
    slopes_figure,
    staircase_figure,
    window_figure,
)
from bloomlab.plots.attention import head_grid_figure, pattern_figure
from bloomlab.plots.attribution import attribution_figure
from bloomlab.plots.circuits import edges_figure
from bloomlab.plots.comparison import comparison_figure
from bloomlab.plots.curves import curves_figure
from bloomlab.plots.export import save_figure
from bloomlab.plots.gates import gate_figure
from bloomlab.plots.generation import branches_figure, generation_figure
from bloomlab.plots.hidden_states import cosine_figure, norm_figure, trajectory_figure
from bloomlab.plots.lens import lens_figure, rank_figure
from bloomlab.plots.memory import memory_figure
from bloomlab.plots.patching import patching_figure
from bloomlab.plots.positions import position_figure
from bloomlab.plots.predictions import next_token_figure
from bloomlab.plots.probes import amnesic_figure, probe_figure, transfer_figure
from bloomlab.plots.pruning import head_map_figure, pruning_figure, ranking_figure
from bloomlab.plots.sizes import fit_figure
from bloomlab.plots.training import training_figure

__all__ = [
    "amnesic_figure",
    "attribution_figure",
    "bias_figure",
    "branches_figure",
    "comparison_figure",
    "cosine_figure",
    "curves_figure",
    "edges_figure",
    "fit_figure",
    "gate_figure",
    "generation_figure",
    "head_grid_figure",
    "head_map_figure",
    "lens_figure",
    "memory_figure",
    "next_token_figure",
    "norm_figure",
    "patching_figure",
    "pattern_figure",
    "position_figure",
    "probe_figure",
    "pruning_figure",
    "rank_figure",
    "ranking_figure",
    "recency_figure",
    "save_figure",
    "score_figure",
    "slopes_figure",
    "staircase_figure",
    "training_figure",
    "trajectory_figure",
    "transfer_figure",
    "window_figure",
]
