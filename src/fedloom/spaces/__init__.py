"""Spaces: what is averaged when clients hold adapters."""
