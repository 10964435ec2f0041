"""Numbers from tensors: no model, no plotting."""
