"""Grids of optimizers, problems and seeds, and performance profiles."""
