"""Published optimizers as equations, after their papers: rows of interchange.rule.gallery."""
