"""The meta-gradient and what uses it."""
