"""Grids of optimizers, problems and seeds, curves of test figures, and performance profiles."""
