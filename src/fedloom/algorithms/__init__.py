"""Algorithms: one page each, both halves and their messages."""
