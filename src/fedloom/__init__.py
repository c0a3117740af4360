"""fedloom: federated fine-tuning of language models on data that stays where it is."""

__version__ = "0.1.0"
