"""Finished runs: what they record, how they are read, and which λ they choose."""
