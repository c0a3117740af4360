"""Objectives: what is minimised. A batch gives a loss per client; nothing here is federated."""
