"""Rules, teachers and baselines as optimizers of either framework: their numbers, and what users expect."""

import copy
import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from common import reference
from common.errors import L2OError
from common.tables.baselines import BASELINES
from common.tables.problems import PROBLEMS, Instance
from common.tables.teachers import TEACHERS
from interchange.files.weights import Teacher, save_weights
from interchange.rule.rule import Rule
from tests.helpers.layers import MUON
from tests.helpers.samples import RULE, enlarged, gradients, start

ADAM = Rule.from_text(
    "-ema_hat(g, b1) / (sqrt(ema_hat(square(g), b2)) + eps)", {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
)
LION = Rule.from_text("-sign(0.9 * lag(ema(g, 0.99), 1) + 0.1 * g)")
UNUSUAL = {"momentum": 0.7, "alpha": 0.8, "eps": 0.03, "beta1": 0.6, "beta2": 0.85}
UNUSUAL |= {"weight_decay": 0.2, "momentum_decay": 0.3}
COORDINATEWISE = [name for name, row in BASELINES.items() if row.coordinatewise and not row.package]


GIVEN = {"rule": RULE, **{name: enlarged(name) for name in TEACHERS}}
FEW = ("rule", "rp_s", "dm")  # a rule, and teachers whose features do and do not have state
every_optimizer = pytest.mark.parametrize(
    "given", [*(GIVEN[name] for name in FEW), MUON], ids=[*FEW, "sees tensors"]
)


def feed(impl, optimizer, params, rows: Sequence[Sequence[np.ndarray | None]]) -> None:
    for row in rows:
        impl.feed(optimizer, params, row)


def assert_same(impl, optimizer, params, other, others) -> None:
    """Parameters, counts and state are the same to the bit."""
    assert impl.counts(optimizer, params) == impl.counts(other, others)
    for p, q in zip(params, others, strict=True):
        for a, b in zip(
            [impl.value(p), *impl.state(optimizer, p)], [impl.value(q), *impl.state(other, q)], strict=True
        ):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


# TensorFlow, which takes its time, is compared with torch teacher by teacher in tests/parity.
@pytest.mark.parametrize(
    ("impl", "name"),
    # Row means are those of the layout, which is not torch's here (tests/backends/test_tensor_features.py).
    [("torch", name) for name in GIVEN if name != "rnnprop_f"] + [("tf", name) for name in FEW],
    indirect=["impl"],
)
@pytest.mark.parametrize("lr", [1.0, 0.3])
@pytest.mark.slow_with(lr=(0.3,), name=[name for name in GIVEN if name not in FEW])
@pytest.mark.slow_with(lr=(0.3,), impl=("tf",))
def test_losses_equal_the_functional_rollout(impl, name, lr):
    """The optimizer keeps state per tensor, the rollout one flat vector."""
    given, backend, steps = GIVEN[name], impl.module("backend"), 15
    task = impl.module("problems.tasks").ProblemTask(
        Instance(PROBLEMS["digits-mlp"], 2, batch_size=32), impl.DTYPES["float64"]
    )
    if given is RULE:
        network = backend.rule_network(given, "cpu")
    else:
        network = backend.teacher_network(given.row, given.weights, "float64", "cpu")
    params = impl.parameters([impl.value(p) for p in impl.unflatten(task.initial(), task.shapes)])
    optimizer, losses = impl.optimizer(params, given, lr), []
    for step in range(steps + 1):
        theta = np.concatenate([impl.value(p).ravel() for p in params])
        theta = impl.module("tensors").to_tensor(theta, impl.DTYPES["float64"])
        loss, gradient = impl.value_and_gradient(task, theta, step)
        impl.feed(optimizer, params, [impl.value(g) for g in impl.unflatten(gradient, task.shapes)])
        losses.append(float(loss))
    expected = impl.module("meta.unroll").rollout(task, network, steps, lr)
    np.testing.assert_allclose(losses, expected, rtol=1e-11)
    assert abs(losses[-1] - losses[0]) > 1e-3


def follow(impl, optimizer, params, oracles: Sequence[reference.Optimizer], steps: int) -> None:
    """An optimizer is the oracle of each of its tensors; the second tensor rests in two steps."""
    thetas = start()
    for step, row in enumerate(gradients(steps)):
        row = [None if k == 1 and step in (3, 7) else g for k, g in enumerate(row)]
        impl.feed(optimizer, params, row)
        thetas = [
            x if g is None else oracle.step(x, g) for oracle, x, g in zip(oracles, thetas, row, strict=True)
        ]
        for p, x in zip(params, thetas, strict=True):
            np.testing.assert_allclose(impl.value(p), x, rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("name", COORDINATEWISE)
@pytest.mark.parametrize("unusual", [False, True], ids=["defaults", "unusual settings"])
def test_every_baseline_equals_the_oracle(impl, name, unusual):
    options = dict(BASELINES[name].options)
    if unusual and name != "sgd":
        options = {key: UNUSUAL[key] for key in options}
    params = impl.parameters(start())
    optimizer = impl.baseline(name, params, 0.05, options if unusual else None)
    follow(impl, optimizer, params, [reference.Optimizer(name, 0.05, **options) for _ in params], 60)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize(
    ("name", "rule", "floats", "weight_decay"),
    [("adam", ADAM, 2, 0.0), ("lion", LION, 1, 0.0), ("lion", LION, 1, 0.1)],
)
def test_adam_and_lion_as_rules_equal_the_oracle(impl, name, rule, floats, weight_decay):
    params, options = impl.parameters(start()), BASELINES[name].options
    optimizer = impl.rule(params, rule, 0.01, weight_decay=weight_decay)
    if weight_decay:
        options = options | {"weight_decay": weight_decay}
    follow(impl, optimizer, params, [reference.Optimizer(name, 0.01, **options) for _ in params], 100)
    assert len(impl.state(optimizer, params[0])) == rule.state_floats == floats


@pytest.mark.filterwarnings("ignore:rule 'rule' moves weights:RuntimeWarning")
@pytest.mark.parametrize("nonfinite", ["skip", "off"])
@pytest.mark.parametrize(
    "text",
    [
        "-0.1 * g + 0.01 * cummax(theta)",  # its first state is the parameter itself, not a copy
        "-g / (1 + lag(cummax(theta), 1))",
        "-0.1 * theta",
        "0.5",
        "1 / t",
        "lag(theta, 1) + g",
        "lag(g, 1)",
        "lag(g, 3)",  # a ring of three arrays: each takes over the old value of the one before it
    ],
)
@pytest.mark.usefixtures("code")
def test_a_step_is_the_rules_by_the_parameter_and_state_before_it(impl, text, nonfinite):
    rule, params = Rule.from_text(text), impl.parameters(start()[:1])
    optimizer, path, slopes = impl.rule(params, rule, nonfinite=nonfinite), [], []
    for g, *_ in gradients(5):
        path.append(impl.value(params[0]))
        slopes.append(g)
        u = rule.evaluate({"g": np.array(slopes), "theta": np.array(path)})[-1]
        impl.feed(optimizer, params, [g])
        np.testing.assert_allclose(impl.value(params[0]), path[-1] + u, rtol=1e-13, atol=1e-13)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@every_optimizer
def test_a_parameter_without_gradient_keeps_its_value_state_and_t(impl, given):
    """Leaving a step out is not the same as a zero gradient."""
    params, others, grads = impl.parameters(start()), impl.parameters(start()), gradients(6)
    optimizer, other = (impl.optimizer(p, given, weight_decay=0.1) for p in (params, others))
    feed(impl, optimizer, params, [[a, None if k in (0, 3) else b, c] for k, (a, b, c) in enumerate(grads)])
    feed(impl, other, others, [row for k, row in enumerate(grads) if k not in (0, 3)])
    assert_same(impl, optimizer, params[1:2], other, others[1:2])
    assert impl.counts(optimizer, params) == [6, 4, 6]
    assert not np.array_equal(impl.value(params[0]), impl.value(others[0]))


@every_optimizer
def test_weight_decay_is_decoupled(impl, given):
    """It shrinks theta by 1 - lr * wd beside an update that has not seen it."""
    params, others = impl.parameters(start()), impl.parameters(start())
    feed(impl, impl.optimizer(params, given, 0.5, weight_decay=0.1), params, gradients(1))
    feed(impl, impl.optimizer(others, given, 0.5), others, gradients(1))
    for p, q, theta in zip(params, others, start(), strict=True):
        np.testing.assert_allclose(impl.value(p), impl.value(q) - 0.05 * theta, rtol=1e-13, atol=1e-14)


@every_optimizer
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_state_is_of_float32_at_least(impl, given, dtype):
    params = impl.parameters(start(), dtype)
    optimizer = impl.optimizer(params, given)
    feed(impl, optimizer, params, gradients(1))
    kinds = {a.dtype.name for p in params for a in impl.state(optimizer, p)}
    assert kinds == {"float64" if dtype == "float64" else "float32"}
    assert all(dtype in str(p.dtype) for p in params)


@every_optimizer
@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))], ids=["copy", "pickle"]
)
def test_a_copy_goes_on_bit_by_bit(impl, given, way):
    params, grads = impl.parameters(start()), gradients(9)
    optimizer = impl.optimizer(params, given, 0.5, weight_decay=0.1)
    feed(impl, optimizer, params, grads[:4])
    other, others = impl.copied(optimizer, params, way)
    feed(impl, other, others, grads[4:])
    assert not np.array_equal(impl.value(params[0]), impl.value(others[0]))
    feed(impl, optimizer, params, grads[4:])
    assert_same(impl, optimizer, params, other, others)
    assert given is not RULE or other.rule == RULE


@every_optimizer
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "(lr|learning_rate): expected a number >= 0, got -0.1"),
        ({"lr": float("nan")}, "(lr|learning_rate): expected"),
        ({"weight_decay": -1e-3}, "weight_decay: expected a number >= 0, got -0.001"),
        ({"nonfinite": "ignore"}, "nonfinite: expected skip, raise or off, got 'ignore'"),
    ],
)
def test_settings_that_make_no_sense_are_value_errors(impl, given, options, message):
    with pytest.raises(ValueError, match=message):
        impl.optimizer(impl.parameters(start()), given, **options)


@pytest.mark.parametrize("source", ["rule", "teacher", "folder", "shipped"])
def test_rules_and_teachers_are_read_from_their_files_or_by_name(impl, source, tmp_path):
    given = {"rule": RULE, "shipped": Teacher.named("rp_s")}.get(source, GIVEN["rp_s"])
    RULE.save(tmp_path / "rule.json")
    save_weights(tmp_path / "teacher.h5", GIVEN["rp_s"].row, GIVEN["rp_s"].weights, "test")
    path = {"rule": str(tmp_path / "rule.json"), "teacher": tmp_path / "teacher.h5", "folder": tmp_path}
    params, others = impl.parameters(start()), impl.parameters(start())
    made = impl.rule if source == "rule" else impl.teacher
    optimizer, other = made(params, path.get(source, "rp_s")), impl.optimizer(others, given)
    feed(impl, optimizer, params, gradients(3))
    feed(impl, other, others, gradients(3))
    assert_same(impl, optimizer, params, other, others)
    assert all((impl.value(p) != theta).all() for p, theta in zip(params, start(), strict=True))


def test_a_rule_over_a_column_without_definition_is_refused(impl):
    with pytest.raises(L2OError, match="'x0' has no definition"):
        impl.rule(impl.parameters(start()), Rule.from_text("-x0", features={"x0": None}))
