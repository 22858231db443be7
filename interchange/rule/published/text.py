"""Pieces of text that published optimizers share."""


def adam(g: str, beta1: str, beta2: str, eps: str) -> str:
    """Adam's direction, m_hat / (sqrt(v_hat) + eps), of an expression and of names or numbers."""
    return f"ema_hat({g}, {beta1}) / (sqrt(ema_hat(square({g}), {beta2})) + {eps})"


ADAM = adam("g", "beta1", "beta2", "eps")


def rms(x: str) -> str:
    """The root mean square over the tensor; norms differ from it by a factor that ratios of norms lose."""
    return f"sqrt(mean(square({x})))"


def over(size: str) -> str:
    """A size to divide by, and 1 where it is 0: what the papers mean by 0/0 = 0."""
    return f"({size} + (1 - greater({size}, 0)))"
