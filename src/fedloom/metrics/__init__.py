"""Metrics: scores of answers and losses, and their summaries over clients."""
