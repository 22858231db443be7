"""Rules, teachers and baselines as torch optimizers: their numbers, and what torch's users expect of them."""

import copy
import io
import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from common import reference
from common.errors import L2OError
from common.tables.baselines import BASELINES, baseline_names
from common.tables.problems import PROBLEMS, Instance
from common.tables.teachers import TEACHERS, initial_weights
from interchange.files.weights import Teacher, save_weights
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from torch_impl.meta import unroll  # noqa: E402
from torch_impl.networks.rule import RuleNetwork  # noqa: E402
from torch_impl.networks.teacher import TeacherNetwork  # noqa: E402
from torch_impl.optimizers import baselines  # noqa: E402
from torch_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer  # noqa: E402
from torch_impl.problems.tasks import ProblemTask  # noqa: E402
from torch_impl.tensors import unflatten  # noqa: E402

SGD = Rule.from_text("-g")
ADAM = Rule.from_text(
    "-ema_hat(g, b1) / (sqrt(ema_hat(square(g), b2)) + eps)", {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
)
LION = Rule.from_text("-sign(0.9 * lag(ema(g, 0.99), 1) + 0.1 * g)")
RULE = Rule.from_text(
    "-c0 * tanh(m_tilde / c1) / (1 + t / 50) - c2 * lag(g, 2)",
    {"c0": 0.02, "c1": 0.7, "c2": 0.003},
    {"m_tilde": "ema_hat(g, 0.9) / (sqrt(ema_hat(square(g), 0.99)) + 1e-8)"},
    scale=0.5,
)


def teacher_weights(name: str) -> Teacher:
    weights = {key: 2.0 * w for key, w in initial_weights(TEACHERS[name], 1).items()}
    return Teacher(TEACHERS[name], weights, "0" * 64, "test")


OPTIMIZERS = {
    "rule": lambda params, **k: SymbolicOptimizer(params, RULE, **k),
    **{
        name: lambda params, name=name, **k: LearnedOptimizer(params, teacher_weights(name), **k)
        for name in TEACHERS
    },
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    """A matrix, a vector and a scalar."""
    generator = np.random.default_rng(0)
    return [
        torch.nn.Parameter(torch.tensor(generator.normal(size=shape)).to(dtype))
        for shape in ((4, 3), (5,), ())
    ]


def gradients(steps: int, seed: int = 1) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [[generator.normal(size=shape) for shape in ((4, 3), (5,), ())] for _ in range(steps)]


def feed(
    optimizer: torch.optim.Optimizer,
    params: Sequence[torch.nn.Parameter],
    grads: Sequence[Sequence[np.ndarray | None]],
) -> None:
    """One step per row of gradients; None is no gradient."""
    for row in grads:
        for p, g in zip(params, row, strict=True):
            p.grad = None if g is None else torch.tensor(np.asarray(g)).to(p.dtype)
        optimizer.step()


def assert_same(params: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> None:
    for p, q in zip(params, others, strict=True):
        assert p.dtype == q.dtype and torch.equal(p, q)


def assert_same_state(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first["param_groups"] == second["param_groups"]
    assert first["state"].keys() == second["state"].keys()
    for number, state in first["state"].items():
        assert state.keys() == second["state"][number].keys()
        assert_same(state.values(), second["state"][number].values())


@pytest.mark.parametrize("name", ["rule", *TEACHERS])
@pytest.mark.parametrize("lr", [1.0, 0.3])
def test_losses_equal_the_functional_rollout(name, lr):
    """The optimizer keeps state per tensor, the rollout one flat vector."""
    task = ProblemTask(Instance(PROBLEMS["digits-mlp"], 2, batch_size=32), torch.float64)
    if name == "rule":
        network = RuleNetwork(RULE)
    else:
        given = teacher_weights(name)
        network = TeacherNetwork(given.row, given.weights, torch.float64)
    params = [torch.nn.Parameter(p.clone()) for p in unflatten(task.initial(), task.shapes)]
    optimizer, losses = OPTIMIZERS[name](params, lr=lr), []
    for step in range(31):
        optimizer.zero_grad()
        loss = task.loss(params, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    expected = unroll.rollout(task, network, 30, lr)
    np.testing.assert_allclose(losses, expected, rtol=1e-11)
    assert abs(losses[-1] - losses[0]) > 1e-3


@pytest.mark.parametrize("name", baseline_names("tf"))  # of Muon, whose matrices are bfloat16, see test_muon
@pytest.mark.parametrize("unusual", [False, True], ids=["defaults", "unusual settings"])
def test_every_baseline_equals_the_oracle(name, unusual):
    options = dict(BASELINES[name].options)
    if unusual:
        values = {
            "momentum": 0.7,
            "alpha": 0.8,
            "eps": 0.03,
            "beta1": 0.6,
            "beta2": 0.85,
            "weight_decay": 0.2,
            "momentum_decay": 0.3,
        }
        options = {key: values[key] for key in options if name != "sgd"} or options
    params, grads = parameters(), gradients(60)
    optimizer = baselines.make(name, params, 0.05, options if unusual else None)
    oracles = [reference.Optimizer(name, 0.05, **options) for _ in params]
    thetas = [p.detach().numpy().copy() for p in params]
    for row in grads:
        feed(optimizer, params, [row])
        thetas = [oracle.step(x, g) for oracle, x, g in zip(oracles, thetas, row, strict=True)]
        for p, x in zip(params, thetas, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), x, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nadamw_is_torchs_but_for_the_rounding_of_its_product(dtype):
    params, others = ([torch.nn.Parameter(p.detach().to(dtype)) for p in parameters()] for _ in range(2))
    mine = baselines.make("nadamw", params, 0.01, {"weight_decay": 0.1})
    theirs = torch.optim.NAdam(others, 0.01, weight_decay=0.1, decoupled_weight_decay=True)
    for row in gradients(50):
        feed(mine, params, [row])
        feed(theirs, others, [row])
    for p, q in zip(params, others, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-5, atol=1e-6)
        assert mine.state[p].keys() == theirs.state[q].keys()
        assert {k: v.shape for k, v in mine.state[p].items()} == {
            k: v.shape for k, v in theirs.state[q].items()
        }


def test_adam_as_a_rule_is_torchs_adam():
    params, others = parameters(), parameters()
    rule = SymbolicOptimizer(params, ADAM, lr=0.01)
    adam = torch.optim.Adam(others, lr=0.01)
    for row in gradients(200):
        feed(rule, params, [row])
        feed(adam, others, [row])
        for p, q in zip(params, others, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-12, atol=1e-13)
    assert RULE.state_floats == 4 and ADAM.state_floats == 2
    assert set(rule.state[params[0]]) == {"step", "skipped", "s0", "s1"}


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lion_as_a_rule_is_lion(weight_decay):
    params, others = parameters(), parameters()
    rule = SymbolicOptimizer(params, LION, lr=0.01, weight_decay=weight_decay)
    lion = baselines.Lion(others, lr=0.01, weight_decay=weight_decay)
    feed(rule, params, gradients(100))
    feed(lion, others, gradients(100))
    for p, q in zip(params, others, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-12, atol=1e-13)
    assert LION.state_floats == 1


@every_optimizer
def test_parameters_that_cannot_take_a_fraction_are_refused(make):
    optimizer = make(parameters())
    with pytest.raises(ValueError, match=r"expected floating point or complex numbers, got torch\.int64"):
        optimizer.add_param_group({"params": [torch.zeros(3, dtype=torch.int64)]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("nonfinite", ["skip", "off"])
@pytest.mark.parametrize("text", ["-0.1 * g + 0.01 * cummax(theta)", "-g / (1 + lag(cummax(theta), 1))"])
def test_state_holds_the_parameter_before_its_step(text, nonfinite, foreach):
    """At its first step the state of cummax is the parameter itself, not a copy."""
    rule, (p, *_) = Rule.from_text(text), parameters()
    optimizer, path, slopes = SymbolicOptimizer([p], rule, nonfinite=nonfinite, foreach=foreach), [], []
    for g, *_ in gradients(5):
        path.append(p.detach().numpy().copy())
        slopes.append(np.asarray(g))
        u = rule.evaluate({"g": np.array(slopes), "theta": np.array(path)})[-1]
        feed(optimizer, [p], [[g]])
        np.testing.assert_allclose(p.detach().numpy(), path[-1] + u, rtol=1e-13, atol=1e-13)


@every_optimizer
def test_a_parameter_without_gradient_keeps_its_value_state_and_t(make):
    """Leaving a step out is not the same as a zero gradient."""
    params, others = parameters(), parameters()
    grads = gradients(6)
    holes = [[row[0], None, row[2]] if step in (0, 3) else row for step, row in enumerate(grads)]
    optimizer, other = make(params), make(others)
    feed(optimizer, params, holes)
    feed(other, others, [row for step, row in enumerate(grads) if step not in (0, 3)])
    assert torch.equal(params[1], others[1])
    assert optimizer.state[params[1]]["step"] == 4 and optimizer.state[params[0]]["step"] == 6
    for key, array in optimizer.state[params[1]].items():
        assert torch.equal(array, other.state[others[1]][key])
    assert not torch.equal(params[0], others[0])


def test_lion_leaves_parameters_without_gradient_alone():
    params = parameters()
    before = params[1].detach().clone()
    feed(baselines.Lion(params, weight_decay=0.1), params, [[row[0], None, row[2]] for row in gradients(2)])
    assert torch.equal(params[1], before)


@every_optimizer
def test_param_groups_have_their_own_settings(make):
    params, grads = parameters(), gradients(4)
    groups = [
        {"params": params[:1], "lr": 0.5},
        {"params": params[1:2], "weight_decay": 0.1, "lr": 0.0},
        {"params": params[2:], "maximize": True},
    ]
    optimizer = make(groups, lr=2.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.0, 2.0]
    feed(optimizer, params, grads)
    settings = ({"lr": 0.5}, {"lr": 0.0, "weight_decay": 0.1}, {"lr": 2.0, "maximize": True})
    for k, options in enumerate(settings):
        alone = parameters()[k]
        feed(make([alone], **options), [alone], [[row[k]] for row in grads])
        assert torch.equal(params[k], alone)
    assert torch.equal(params[1], parameters()[1]) and not torch.equal(params[2], parameters()[2])


@pytest.mark.parametrize("shape", [None, (), (1,)], ids=["float", "0-dim tensor", "1-element tensor"])
def test_learning_rate_schedulers_work(shape):
    params, grads = parameters(), gradients(6)
    lr = 0.1 if shape is None else torch.full(shape, 0.1, dtype=torch.float64)
    optimizer = SymbolicOptimizer(params, SGD, lr=lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    for row in grads:
        feed(optimizer, params, [row])
        scheduler.step()
    for k, p in enumerate(parameters()):
        moved = sum(r * row[k] for r, row in zip((0.1, 0.1, 0.05, 0.05, 0.025, 0.025), grads, strict=True))
        np.testing.assert_allclose(params[k].detach().numpy(), p.detach().numpy() - moved, rtol=1e-12)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.0125)


@every_optimizer
def test_weight_decay_is_decoupled(make):
    """It shrinks theta by 1 - lr * wd beside an update that has not seen it."""
    params, others = parameters(), parameters()
    feed(make(params, lr=0.5, weight_decay=0.1), params, gradients(1))
    feed(make(others, lr=0.5), others, gradients(1))
    for p, q, start in zip(params, others, parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.05 * start, rtol=1e-13, atol=1e-14)


@every_optimizer
def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned(make):
    params = parameters()
    optimizer, calls = make(params), []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        calls.append(loss.item())
        return loss

    before = [p.detach().clone() for p in params]
    assert optimizer.step(closure).item() == calls[0] and len(calls) == 1
    assert all(not torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert optimizer.step() is None


@every_optimizer
@pytest.mark.parametrize("option", ["capturable", "differentiable"])
def test_masked_and_differentiable_steps_are_the_same_steps(make, option):
    params, others, grads = parameters(), parameters(), gradients(5)
    grads[2][1][0] = np.inf
    for p in params:
        p.requires_grad_(False)  # a leaf cannot be changed in place while gradients are recorded
    optimizer, other = make(params, weight_decay=0.1, **{option: True}), make(others, weight_decay=0.1)
    feed(optimizer, params, grads)
    feed(other, others, grads)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q.detach(), rtol=1e-12, atol=1e-14)
        assert optimizer.state[p]["step"] == other.state[q]["step"]


@every_optimizer
def test_maximize_is_minimizing_the_negative(make):
    params, others = parameters(), parameters()
    feed(make(params, maximize=True, weight_decay=0.1, lr=0.5), params, gradients(5))
    feed(make(others, weight_decay=0.1, lr=0.5), others, [[-g for g in row] for row in gradients(5)])
    assert_same(params, others)


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_state_dict_saved_and_loaded_goes_on_bit_by_bit(make, dtype):
    """Through torch.save and the weights-only reader; bfloat16 parameters keep float32 state."""
    params, others, grads = parameters(dtype), parameters(dtype), gradients(12)
    whole = make(params, lr=0.5)
    feed(whole, params, grads[:6])
    file = io.BytesIO()
    torch.save({"optimizer": whole.state_dict(), "params": [p.detach() for p in params]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    with torch.no_grad():
        for q, value in zip(others, saved["params"], strict=True):
            q.copy_(value)
    resumed = make(others, lr=7.0)
    resumed.load_state_dict(saved["optimizer"])
    assert_same_state(whole, resumed)
    work = torch.promote_types(dtype, torch.float32)
    assert all(
        array.dtype == work
        for key, array in resumed.state[others[0]].items()
        if key not in ("step", "skipped")
    )
    feed(whole, params, grads[6:])
    kept = copy.deepcopy(saved["optimizer"]["state"][0])
    feed(resumed, others, grads[6:])
    assert_same(params, others)
    assert_same_state(whole, resumed)
    assert_same(kept.values(), saved["optimizer"]["state"][0].values())  # loaded state is a copy


@every_optimizer
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_a_copied_optimizer_keeps_its_rule_or_teacher(make, way):
    params, grads = parameters(), gradients(9)
    optimizer = make(params, lr=0.5)
    feed(optimizer, params, grads[:4])
    both = (optimizer, params)
    other, others = pickle.loads(pickle.dumps(both)) if way == "pickle" else copy.deepcopy(both)
    assert others[0] is not params[0] and other.param_groups[0]["params"][0] is others[0]
    feed(other, others, grads[4:])
    assert not torch.equal(params[0], others[0])
    feed(optimizer, params, grads[4:])
    assert_same(params, others)
    assert_same_state(optimizer, other)


def test_a_pickled_rule_is_the_same_rule():
    optimizer = SymbolicOptimizer(parameters(), RULE)
    assert pickle.loads(pickle.dumps(optimizer)).rule == RULE


@every_optimizer
def test_sparse_gradients_are_refused(make):
    p = torch.nn.Parameter(torch.zeros(3, 2))
    p.grad = torch.sparse_coo_tensor([[0]], torch.ones(1, 2), (3, 2), check_invariants=True)
    optimizer = make([p])
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert not p.any() and not optimizer.state[p]


@every_optimizer
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr: expected a number >= 0, got -0.1"),
        ({"lr": float("nan")}, "lr: expected"),
        ({"lr": torch.tensor(-1.0)}, "lr: expected"),
        ({"lr": torch.ones(2)}, "1-element"),
        ({"weight_decay": -1e-3}, "weight_decay: expected a number >= 0, got -0.001"),
        ({"nonfinite": "ignore"}, "nonfinite: expected skip, raise or off, got 'ignore'"),
    ],
)
def test_settings_that_make_no_sense_are_value_errors(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(parameters(), **options)


def test_no_parameters_is_torchs_own_error():
    with pytest.raises(ValueError, match="empty parameter list"):
        SymbolicOptimizer([], SGD)


def test_rules_and_teachers_are_read_from_their_files(tmp_path):
    RULE.save(tmp_path / "rule.json")
    given = teacher_weights("rp_s")
    save_weights(tmp_path / "teacher.h5", given.row, given.weights, "test")
    for from_file, direct in (
        (lambda p: SymbolicOptimizer(p, str(tmp_path / "rule.json")), OPTIMIZERS["rule"]),
        (lambda p: LearnedOptimizer(p, tmp_path / "teacher.h5"), OPTIMIZERS["rp_s"]),
        (lambda p: LearnedOptimizer(p, tmp_path), OPTIMIZERS["rp_s"]),
    ):
        params, others = parameters(), parameters()
        feed(from_file(params), params, gradients(3))
        feed(direct(others), others, gradients(3))
        assert_same(params, others)


def test_a_rule_over_a_column_without_definition_is_refused():
    rule = Rule.from_text("-x0", features={"x0": None})
    with pytest.raises(L2OError, match="'x0' has no definition"):
        SymbolicOptimizer(parameters(), rule)


@pytest.mark.parametrize(
    ("expression", "by_hand"),
    [
        ("-0.1 * theta", lambda theta, t: 0.9 * theta),
        ("0.5", lambda theta, t: theta + 0.5),
        ("1 / t", lambda theta, t: theta + 1 / t),
    ],
)
@pytest.mark.filterwarnings("ignore:rule 'rule' moves weights:RuntimeWarning")
def test_rules_may_read_theta_and_t_or_nothing(expression, by_hand):
    params = parameters()
    optimizer = SymbolicOptimizer(params, Rule.from_text(expression))
    expected = [p.detach().clone() for p in params]
    for t in (1, 2, 3):
        feed(optimizer, params, gradients(1))
        expected = [by_hand(theta, t) for theta in expected]
    for p, theta in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), theta, rtol=1e-13, atol=1e-15)


@every_optimizer
def test_memory_layout_and_empty_tensors_do_not_matter(make):
    base = torch.tensor(np.random.default_rng(0).normal(size=(4, 3)))
    turned, plain = torch.nn.Parameter(base.t()), torch.nn.Parameter(base.t().contiguous())
    empty = torch.nn.Parameter(torch.zeros(0, 3, dtype=torch.float64))
    optimizer, other = make([turned, empty]), make([plain])
    for row in gradients(3):
        feed(optimizer, [turned, empty], [[row[0].T, np.zeros((0, 3))]])
        feed(other, [plain], [[row[0].T]])
    torch.testing.assert_close(turned.detach(), plain.detach(), rtol=1e-13, atol=1e-15)


def test_a_lag_of_the_parameter_is_the_value_before_and_not_the_live_tensor():
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = SymbolicOptimizer([p], Rule.from_text("lag(theta, 1) + g"))
    values = []
    for g in (1.0, 2.0, 3.0, 4.0):
        p.grad = torch.full_like(p, g)
        before = p.item()
        optimizer.step()
        values.append(p.item() - before)
    assert values == [1.0, 2.0, 4.0, 7.0]  # u_t = theta_{t-1 before its step} + g_t, by hand


def test_a_lag_of_the_gradient_survives_zero_grad_in_place():
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = SymbolicOptimizer([p], Rule.from_text("lag(g, 1)"))
    updates = []
    for g in (1.0, 2.0, 3.0, 4.0):
        optimizer.zero_grad(set_to_none=False)
        before = p.item()
        (p * g).sum().backward()
        optimizer.step()
        updates.append(p.item() - before)
    assert updates == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.usefixtures("code")
def test_autograd_is_told_of_a_step():
    """A graph that saw the parameter before refuses to go backwards with the new one."""
    params = parameters()
    loss = sum(p.square().sum() for p in params)
    feed(SymbolicOptimizer(params, SGD), params, gradients(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compiled_code_rounds_to_16_bits_as_torch_does(dtype):
    base = torch.linspace(-2.0, 2.0, 1001)
    params = [torch.nn.Parameter(base.to(dtype)) for _ in range(2)]
    optimizers = [
        SymbolicOptimizer([p], SGD, lr=0.0123, weight_decay=0.5, foreach=foreach)
        for p, foreach in zip(params, (None, False), strict=True)
    ]
    for _ in range(5):
        for p, optimizer in zip(params, optimizers, strict=True):
            p.grad = (3.0 * torch.cos(base)).to(dtype)
            optimizer.step()
    assert torch.equal(*params) and not torch.equal(params[0], base.to(dtype))


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize("nonfinite", ["skip", "off"])
def test_a_lag_of_three_steps_is_the_gradient_of_three_steps_ago(nonfinite):
    """A ring of three arrays: each takes over the old value of the one before it."""
    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = SymbolicOptimizer([p], Rule.from_text("lag(g, 3)"), nonfinite=nonfinite)
    seen = []
    for g in (1.0, 2.0, 4.0, 8.0, 16.0):
        before = p.detach().clone()
        p.grad = torch.full_like(p, g)
        optimizer.step()
        seen.append((p.detach() - before).tolist())
    assert seen == [[0.0, 0.0]] * 3 + [[1.0, 1.0], [2.0, 2.0]]
