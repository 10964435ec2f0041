"""Figures: arrays in, a plotly `Figure` out. No model, no torch, nothing shown."""

from bloomlab.plots.alibi import bias_figure, slopes_figure
from bloomlab.plots.attention import head_grid_figure, pattern_figure
from bloomlab.plots.hidden_states import norm_figure
from bloomlab.plots.patching import patching_figure
from bloomlab.plots.predictions import next_token_figure
from bloomlab.plots.probes import probe_figure
from bloomlab.plots.pruning import head_map_figure, pruning_figure, ranking_figure

__all__ = [
    "bias_figure",
    "head_grid_figure",
    "head_map_figure",
    "next_token_figure",
    "norm_figure",
    "patching_figure",
    "pattern_figure",
    "probe_figure",
    "pruning_figure",
    "ranking_figure",
    "slopes_figure",
]
