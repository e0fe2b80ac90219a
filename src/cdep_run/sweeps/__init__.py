"""Sweeps: plan their jobs, run them, keep track of them, and resume them."""
