"""The BLOOM itself: configuration, modules, hooks, cache, generation, checkpoints."""
