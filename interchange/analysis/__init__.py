"""What an optimizer does, measured: fit, memory, size, curves, terms, and what it is nearest to."""
