"""Datasets, their files, and which coordinates of an optimizee are looked at."""
