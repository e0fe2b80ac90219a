"""Penalties: `penalty(model, batch) -> (logits, value)`; λ is applied by the training loop."""
