"""Cached features of frozen trunks."""
