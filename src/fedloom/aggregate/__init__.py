"""Aggregation rules: how replies become one value."""
