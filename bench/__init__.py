"""Benchmarks: what the README claims, measured on this machine, each figure beside its aim."""
