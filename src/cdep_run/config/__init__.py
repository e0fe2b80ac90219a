"""Configuration: types, checks, comparison, overrides, and what is hooked into Hydra."""
