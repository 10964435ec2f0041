"""TransformerLens' own BLOOM, built without a hub: the oracle of hook values."""

import copy

import torch
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf


def bridge_of(hf):
    """TransformerLens' own model around a copy of transformers'."""
    config = build_bridge_config_from_hf(hf.config, "BloomForCausalLM", "local", torch.float32)
    adapter = ArchitectureAdapterFactory.select_architecture_adapter(config)
    adapter.cfg.device = "cpu"
    return TransformerBridge(copy.deepcopy(hf), adapter, None)
