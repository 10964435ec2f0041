"""bloomlab: a Jupyter-first research lab for the BLOOM language models.

`import bloomlab as bl` is cheap: what a name needs is imported when the name is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bloomlab import analysis, errors, experiments, interventions, plots, widgets
    from bloomlab.errors import BloomlabError
    from bloomlab.lab import Lab
    from bloomlab.model.bloom import BloomModel
    from bloomlab.model.cache import KVCache
    from bloomlab.model.config import BloomConfig
    from bloomlab.model.heads import (
        BloomForCausalLM,
        BloomForQuestionAnswering,
        BloomForSequenceClassification,
        BloomForTokenClassification,
    )
    from bloomlab.model.load import load
    from bloomlab.model.policies import HeavyHitters, SinkWindow
    from bloomlab.model.prune import prune_heads
    from bloomlab.model.prune_parts import prune_layers, prune_neurons
    from bloomlab.model.prune_vocabulary import prune_vocabulary
    from bloomlab.session import Session
    from bloomlab.tokens import BloomTokenizer, BloomTokenizerFast
    from bloomlab.trace import Trace

__version__ = "0.1.0"

_HOMES = {
    "BloomConfig": "model.config",
    "BloomForCausalLM": "model.heads",
    "BloomForQuestionAnswering": "model.heads",
    "BloomForSequenceClassification": "model.heads",
    "BloomForTokenClassification": "model.heads",
    "BloomModel": "model.bloom",
    "BloomTokenizer": "tokens",
    "BloomTokenizerFast": "tokens",
    "BloomlabError": "errors",
    "HeavyHitters": "model.policies",
    "KVCache": "model.cache",
    "Lab": "lab",
    "Session": "session",
    "SinkWindow": "model.policies",
    "Trace": "trace",
    "load": "model.load",
    "prune_heads": "model.prune",
    "prune_layers": "model.prune_parts",
    "prune_neurons": "model.prune_parts",
    "prune_vocabulary": "model.prune_vocabulary",
}
_PACKAGES = ("analysis", "errors", "experiments", "interventions", "plots", "widgets")

__all__ = [
    "BloomConfig",
    "BloomForCausalLM",
    "BloomForQuestionAnswering",
    "BloomForSequenceClassification",
    "BloomForTokenClassification",
    "BloomModel",
    "BloomTokenizer",
    "BloomTokenizerFast",
    "BloomlabError",
    "HeavyHitters",
    "KVCache",
    "Lab",
    "Session",
    "SinkWindow",
    "Trace",
    "analysis",
    "errors",
    "experiments",
    "interventions",
    "load",
    "plots",
    "prune_heads",
    "prune_layers",
    "prune_neurons",
    "prune_vocabulary",
    "widgets",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"bloomlab.{name}")
    if name in _HOMES:
        value = getattr(import_module(f"bloomlab.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(
        f"module 'bloomlab' has no attribute {name!r}; it has {', '.join(__all__)}"
    )


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__version__"]
