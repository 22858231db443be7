"""Every kind of state that may be at hand, by every way of torch to load it: goes on right, or is refused.

``tests/tf_impl/test_keras_state_matrix.py`` asks the same of Keras.
"""

import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from tests.helpers.samples import enlarged  # noqa: E402
from torch_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer  # noqa: E402

ADAM = Rule.named("adam")
# The same names of arrays and constants, another expression.
LIKE_ADAM = Rule.from_text(
    "-ema_hat(g, beta1) * (sqrt(ema_hat(square(g), beta2)) + eps)", dict(ADAM.constants)
)
Model, Optimizer = torch.nn.Module, torch.optim.Optimizer


def network(dtype: torch.dtype = torch.float32, width: int = 3) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, 1)).to(dtype)


def adam(model: Model, **options: Any) -> Optimizer:
    return SymbolicOptimizer(model.parameters(), ADAM, **({"lr": 0.01} | options))


def teacher(model: Model) -> Optimizer:
    return LearnedOptimizer(model.parameters(), "rp_s")


def without_the_first_layer(model: Model) -> Optimizer:
    return SymbolicOptimizer(model[1].parameters(), ADAM, lr=0.01)


NUMPY = {"lr": np.float64(0.01), "constants": {"beta1": np.float32(0.5)}, "weight_decay": np.float64(0.0)}
# Who saves, how its network differs, who loads, and by which words loading is refused ("" is: goes on).
SOURCES: dict[str, tuple[Callable[..., Optimizer], dict[str, Any], Callable[..., Optimizer], str]] = {
    "torch's own": (
        lambda m: torch.optim.Adam(m.parameters()),
        {},
        adam,
        "expected state of the rule 'adam', .* an optimizer that is neither a rule nor|Missing key .*skipped",
    ),
    "ours": (adam, {}, adam, ""),
    "a teacher's": (teacher, {}, teacher, ""),
    "other constants": (lambda m: adam(m, constants={"beta1": 0.5}), {}, adam, ""),
    "another rule": (
        lambda m: SymbolicOptimizer(m.parameters(), Rule.named("momentum")),
        {},
        adam,
        "expected state of the rule 'adam', .* of the rule 'momentum'|Missing key .*s1",
    ),
    "another rule with the same arrays": (
        lambda m: SymbolicOptimizer(m.parameters(), LIKE_ADAM),
        {},
        adam,
        "expected state of the rule 'adam', u = .*, got that of the rule",
    ),
    "another teacher": (
        teacher,
        {},
        lambda m: LearnedOptimizer(m.parameters(), enlarged()),
        "expected state of the teacher 'rp_s', got that of the teacher whose hash begins with",
    ),
    "a teacher for a rule": (
        teacher,
        {},
        adam,
        "expected state of the rule 'adam', .* got that of the teacher whose hash|Size mismatch",
    ),
    "other shapes": (adam, {"width": 5}, adam, "expected arrays of state of shapes|Size mismatch"),
    "fewer parameters": (without_the_first_layer, {}, adam, "expected arrays of state|Missing key .*step"),
    "NumPy constants": (
        lambda m: adam(m, **NUMPY),
        {},
        lambda m: adam(m, constants={"beta1": 0.5}),
        "",
    ),
    "a wider dtype": (adam, {"dtype": torch.float64}, adam, ""),
    "a narrower dtype": (adam, {"dtype": torch.bfloat16}, adam, ""),
}


def by_a_file(saved: tuple[Model, Optimizer], loading: tuple[Model, Optimizer], folder: Path) -> None:
    torch.save(saved[1].state_dict(), file := io.BytesIO())
    file.seek(0)
    loading[1].load_state_dict(torch.load(file, weights_only=True))


def by_a_checkpoint(flat: bool) -> Callable[..., None]:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def load(saved: tuple[Model, Optimizer], loading: tuple[Model, Optimizer], folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this is one process
            dcp.save({"o": get_optimizer_state_dict(*saved, options=options)}, checkpoint_id=folder)
            state = {"o": get_optimizer_state_dict(*loading, options=options)}
            dcp.load(state, checkpoint_id=folder)
        set_optimizer_state_dict(*loading, state["o"], options=options)

    return load


WAYS = {
    "load_state_dict": by_a_file,
    "checkpoint": by_a_checkpoint(False),
    "flat checkpoint": by_a_checkpoint(True),
}


def steps(model: Model, optimizer: Optimizer, seeds: range) -> None:
    for seed in seeds:
        draw = np.random.default_rng(seed)
        for p in model.parameters():
            p.grad = torch.tensor(draw.normal(size=tuple(p.shape))).to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_state_of_every_kind_goes_on_right_or_is_refused(source, way, tmp_path):
    make, differs, load_into, refused = source
    model = network(**differs)
    saved, asked = (model, make(model)), load_into(network()).state_dict()["param_groups"][0]
    steps(*saved, range(3))
    other = network()
    if not differs.keys() - {"dtype"}:
        other.load_state_dict(model.state_dict())
    loading = other, load_into(other)
    if refused:
        with pytest.raises((ValueError, dcp.api.CheckpointException), match=refused):
            way(saved, loading, tmp_path)
        return
    way(saved, loading, tmp_path)
    group = loading[1].param_groups[0]
    assert group.get("constants") == asked.get("constants") and group["lr"] == saved[1].param_groups[0]["lr"]
    if "constants" in asked:
        saved[1].param_groups[0]["constants"] = copy.deepcopy(asked["constants"])
    steps(*saved, range(3, 6))
    steps(*loading, range(3, 6))
    exact = differs.get("dtype") is None
    for one, two in zip(saved[0].parameters(), other.parameters(), strict=True):
        bound = 0.0 if exact else 4 * torch.finfo(one.dtype if one.dtype.itemsize < 4 else two.dtype).eps
        torch.testing.assert_close(two, one.to(two.dtype), rtol=bound, atol=bound)
    assert all(values["step"] == 6 for values in loading[1].state.values())
    assert {values["s0"].dtype for values in loading[1].state.values() if "s0" in values} <= {torch.float32}
