"""One module per target, each with ``emit(rule) -> str``."""
