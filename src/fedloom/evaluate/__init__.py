"""Benchmarks on finished models: base, tuned, personal and others side by side, by lm-eval in a process of its own."""
