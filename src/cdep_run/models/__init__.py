"""Models: plain PyTorch modules that return logits and nothing else."""
