"""Engines: who does the mathematics of local training."""
