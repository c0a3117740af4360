"""Runtimes: where clients run. Algorithms see only `Federation` and `Client`."""
