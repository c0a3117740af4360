"""Data: sources, templates, masks, and the one partition plan for train, validation and test."""
