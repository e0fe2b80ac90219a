"""Data sets: each builder returns a `Bunch` of splits that live as tensors on one device."""
