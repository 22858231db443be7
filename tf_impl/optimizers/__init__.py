"""Teachers, rules and hand-made optimizers in the framework's own form."""
