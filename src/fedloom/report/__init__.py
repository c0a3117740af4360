"""The report: one HTML page that tells what a run did, or how several compare."""
