"""One training run: build it, check it, fit it, and save its checkpoints."""
