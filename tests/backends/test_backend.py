"""Each backend's module has what the shared commands ask of it (``interchange.backend``)."""

import inspect
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

from interchange.backend import Backend, Learner
from interchange.emit import TARGETS
from interchange.meta.config import TuneConfig
from interchange.rule.rule import Rule

FUNCTIONS = {name: value for name, value in vars(Backend).items() if inspect.isfunction(value)}
FUNCTIONS = {name: value for name, value in FUNCTIONS.items() if not name.startswith("_")}
TEXTS = [name for name, kind in vars(Backend)["__annotations__"].items() if kind is str]


@pytest.fixture
def backend(impl) -> ModuleType:
    return impl.module("backend")


def faults(backend: ModuleType) -> Iterator[str]:
    """What the module lacks, or takes otherwise: parameters may only follow, with defaults."""
    yield from (name for name in TEXTS if not isinstance(getattr(backend, name, None), str))
    for name, asked in FUNCTIONS.items():
        wanted = list(inspect.signature(asked).parameters.values())[1:]
        given = getattr(backend, name, None)
        have = list(inspect.signature(given).parameters.values()) if given else []
        same = [p.name for p in have[: len(wanted)]] == [p.name for p in wanted]
        if not (given and same and all(p.default is not p.empty for p in have[len(wanted) :])):
            yield name


def test_a_backend_has_everything_the_commands_ask_of_it(backend):
    assert list(faults(backend)) == []
    assert backend.__name__ == f"{backend.NAME}_impl.backend"
    assert backend.TARGET in TARGETS
    assert list(lacking(backend.Learner, Learner)) == []


def lacking(given: type, protocol: type) -> Iterator[str]:
    """Methods that a class lacks or takes otherwise: further parameters need defaults."""
    for name, asked in vars(protocol).items():
        if not name.startswith("_") and not isinstance(asked, property):
            wanted = inspect.signature(getattr(protocol, name)).parameters
            have = inspect.signature(getattr(given, name, lambda: None)).parameters
            others = [p for key, p in have.items() if key not in (*wanted, "self")]
            if (
                not hasattr(given, name)
                or not set(wanted) - {"self"} <= set(have)
                or any(p.default is p.empty for p in others)
            ):
                yield name


def test_a_method_that_a_learner_lacks_or_takes_otherwise_is_found():
    class Half(Learner):
        def put(self, arrays):
            """Another name."""

    assert list(lacking(Half, Learner)) == ["put"]
    assert "weights" in list(lacking(int, Learner))


@pytest.mark.parametrize("name", [*FUNCTIONS, *TEXTS])
def test_whatever_is_missing_is_found(name, backend):
    part = ModuleType("part")
    vars(part).update({key: value for key, value in vars(backend).items() if key != name})
    assert list(faults(part)) == [name]


def test_another_signature_is_found(backend):
    part = ModuleType("part")
    vars(part).update(vars(backend))
    part.device_of = lambda device: device
    part.rule_network = lambda rule, device, dtype: None
    assert list(faults(part)) == ["device_of", "rule_network"]


def test_a_learner_goes_back_to_before_the_first_step_of_adam(backend):
    """As an interrupted epoch does, and a checkpoint from before the first update."""
    network = backend.rule_network(Rule.named("nesterov"), "cpu")
    learner = backend.Learner(network, TuneConfig(dtype="float64"))
    weights, moments = learner.weights(), learner.moments()
    grads = learner.tensors({name: np.ones(w.shape) for name, w in weights.items()})
    for _ in range(2):
        learner.descend(grads, dict.fromkeys(weights, 0.1))
        moved = learner.weights()
        for name in weights:  # Adam's first step is the rate
            assert weights[name] - moved[name] == pytest.approx(0.1, rel=1e-6)
        learner.put(weights)
        learner.set_moments(*moments)
        assert learner.moments() == ({}, {}, 0) and learner.weights() == weights
