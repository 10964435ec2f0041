"""Live views of a session for the notebook; all of a session share prompt, edits and selection."""

from bloomlab.widgets.alibi import AlibiView
from bloomlab.widgets.compare import CompareRuns
from bloomlab.widgets.grid import HeadGrid
from bloomlab.widgets.hidden import HiddenStates
from bloomlab.widgets.lab import LabView
from bloomlab.widgets.lens import LensTable
from bloomlab.widgets.mask import HeadMaskLab
from bloomlab.widgets.pruning import PruningBoard
from bloomlab.widgets.scrub import GenScrubber
from bloomlab.widgets.strip import TokenStrip
from bloomlab.widgets.view import View
from bloomlab.widgets.zoom import HeadZoom

__all__ = [
    "AlibiView",
    "CompareRuns",
    "GenScrubber",
    "HeadGrid",
    "HeadMaskLab",
    "HeadZoom",
    "HiddenStates",
    "LabView",
    "LensTable",
    "PruningBoard",
    "TokenStrip",
    "View",
]
