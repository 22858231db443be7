"""Optimizees: their layers, gradients, many at once, images augmented."""
