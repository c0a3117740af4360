"""Adapters: which numbers of the model are trained, and their place in the flat vector."""
