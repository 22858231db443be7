"""A backend's network as meta-training sees it: learner, gradients, evolution; tensors in, tensors out."""

import functools
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from common.errors import L2OError
from interchange.meta import evolution as shared
from interchange.meta.config import TuneConfig
from interchange.rule.forms import from_free


def learner_of(network: Any, dtype: str = "float64") -> Any:
    """The learner of a network, of the backend it comes from."""
    package = type(network).__module__.partition(".")[0]
    return import_module(f"{package}.meta.learner").Learner(network, TuneConfig(dtype=dtype))


def least_memory(advance: Callable[[float], Any]) -> float:
    """The GiB that the refusal of too few of them names; ``advance(memory)`` takes an unroll."""
    with pytest.raises(L2OError, match="--memory: expected at least") as refused:
        advance(1e-9)
    assert "\n" not in str(refused.value)
    return float(str(refused.value).split("at least ")[1].split()[0])


def by_constants(network: Any, grads: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Derivatives, those by a logarithm (``interchange.rule.forms``) as those by the constant itself.

    Adam's eps is 1e-8, and the derivative by its logarithm 1e8 times smaller than the terms it is a sum of.
    """
    found, forms = {}, getattr(network, "forms", {})
    for name, grad in grads.items():
        log = forms.get(name) == "log"
        found[name] = np.asarray(grad) / (from_free(float(network.weights[name]), "log") if log else 1.0)
    return found


def here(task: Callable[[int], Any], network: Any) -> shared.Segments:
    """Segments in this process."""
    return shared.segments_here(learner_of(network), task)


def evolution(
    task: Callable[[int], Any],
    network: Any,
    steps: int,
    scales: Mapping[str, float],
    generator: np.random.Generator,
    pairs: int,
    sigma: float,
    log: bool = False,
) -> tuple[dict[str, Any], np.ndarray]:
    """Weight name -> gradient of the network's own kind, and the losses of the last rollout."""
    learner = learner_of(network)
    grads, losses = shared.evolution(
        here(task, network), learner.weights(), steps, scales, generator, pairs, sigma, log
    )
    return learner.tensors(grads), losses


class Persistent:
    """Persistent evolution strategies of a network, piece by piece."""

    def __init__(self, task: Callable[[int], Any], network: Any, *given: Any, **more: Any) -> None:
        self._learner = learner_of(network)
        self._pieces = shared.Persistent(here(functools.cache(task), network), *given, **more)

    def advance(self, steps: int) -> tuple[dict[str, Any], np.ndarray]:
        """The next ``steps`` steps, around the weights as they are now."""
        grads, losses = self._pieces.gradient(self._learner.weights(), steps)
        return self._learner.tensors(grads), losses
