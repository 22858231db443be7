"""Rules: equations that are optimizers."""
