"""Non-finite updates of torch's optimizers: coordinate by coordinate, the same on every path of a step."""

import copy
from collections.abc import Callable

import numpy as np
import pytest

from common import kernels
from common.errors import L2OError
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from tests.torch_impl.test_optimizers import every_optimizer, feed, gradients, parameters  # noqa: E402
from torch_impl.optimizers.base import CoordinateOptimizer  # noqa: E402
from torch_impl.optimizers.optimizers import NonFiniteError, SymbolicOptimizer  # noqa: E402

AVERAGE = Rule.from_text("-c0 * ema_hat(g, b) - 0.1 * tanh(lag(g, 1)) / t", {"c0": 0.5, "b": 0.8})
SPREADING = {
    # rule, gradient, lr of a coordinate in float32 -> what is not finite there
    "the gradient": ("-sign(lag(ema(g, 0.9), 1) + g)", float("inf"), 1.0),
    "the update": ("-1 / g", 0.0, 1.0),
    "the state": ("-sign(ema(square(g), 0.9))", 1e30, 1.0),
    "the moved parameter": ("-g", 3e38, 10.0),
}
PATHS = {
    "compiled": {},
    "plain": {},  # with L2O_KERNELS=0
    "one by one": {"foreach": False},
    "capturable": {"capturable": True},
    "differentiable": {"differentiable": True},
    "graph": {},  # of torch.compile
}


@pytest.fixture(params=PATHS)
def path(request, monkeypatch) -> str:
    """A path of a step; the compiled one fails if it leaves a tensor to another."""
    if request.param == "compiled":
        if reason := kernels.missing():
            pytest.skip(reason)
        monkeypatch.delattr(CoordinateOptimizer, "_step_one")
    else:
        monkeypatch.setenv("L2O_KERNELS", "0")
    torch._dynamo.reset()
    return request.param


def made(path: str, params, rule=AVERAGE, **options) -> tuple[SymbolicOptimizer, Callable[[], object]]:
    """An optimizer and its step on this path."""
    for p in params:
        p.requires_grad_(False)  # a leaf cannot be changed in place while gradients are recorded
    optimizer = SymbolicOptimizer(params, rule, **PATHS[path], **options)
    step = torch.compile(optimizer.step, backend="eager") if path == "graph" else optimizer.step
    return optimizer, step


def values(optimizer, p) -> list[torch.Tensor]:
    """The parameter and its arrays of state, [..., coordinates]."""
    return [
        x.detach().clone().reshape(-1, p.numel())
        for x in (p, *(a for key, a in optimizer.state[p].items() if key not in ("step", "skipped")))
    ]


def give(params, row) -> None:
    for p, g in zip(params, row, strict=True):
        p.grad = torch.tensor(np.asarray(g)).to(p.dtype)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_coordinate_is_left_alone_and_all_others_go_on(path, bad):
    """Value, weight decay and state of the coordinate stay for that step; nothing else is different."""
    params, others = parameters(), parameters()
    options = {"lr": 0.1, "weight_decay": 0.1}
    (optimizer, step), (other, ahead) = (made(path, x, **options) for x in (params, others))
    for number, row in enumerate(gradients(6)):
        give(params, row)
        give(others, row)
        ahead()
        if number != 3:
            step()
            continue
        params[1].grad[2] = bad
        before = values(optimizer, params[1])
        step()
        for old, new in zip(before, values(optimizer, params[1]), strict=True):
            assert torch.equal(old[:, 2], new[:, 2])
        assert [int(optimizer.state[p]["skipped"]) for p in params] == [0, 1, 0]
    for p, q in zip(params, others, strict=True):
        assert optimizer.state[p]["step"] == other.state[q]["step"] == 6
        assert optimizer.state[p]["skipped"] == 0
        for x, y in zip(values(optimizer, p), values(other, q), strict=True):
            kept = [k for k in range(x.shape[1]) if p is not params[1] or k != 2]
            assert torch.equal(x[:, kept], y[:, kept]) and torch.isfinite(x).all()


def test_t_stands_still_for_a_tensor_of_which_nothing_moved(path):
    """As if that tensor had had no gradient."""
    params, others = parameters(), parameters()
    (optimizer, step), (other, ahead) = (made(path, x, lr=0.1, weight_decay=0.1) for x in (params, others))
    for number, row in enumerate(gradients(5)):
        give(params, row)
        give(others, row)
        if number in (0, 3):
            params[1].grad.fill_(torch.nan)
            others[1].grad = None
        step()
        ahead()
    assert [int(optimizer.state[p]["step"]) for p in params] == [5, 3, 5]
    for p, q in zip(params, others, strict=True):
        assert all(map(torch.equal, values(optimizer, p), values(other, q)))
        assert optimizer.state[p]["step"] == other.state[q]["step"]


@pytest.mark.parametrize("reason", SPREADING)
@pytest.mark.filterwarnings("ignore:rule 'rule' moves weights:RuntimeWarning")
def test_update_state_and_moved_parameter_have_to_be_finite(path, reason):
    """One of them is enough, though the others may hide it; the warning says which."""
    expression, bad, lr = SPREADING[reason]
    p = torch.nn.Parameter(torch.tensor([-1.0, -1.0]))
    optimizer, step = made(path, [p], Rule.from_text(expression), lr=lr)
    p.grad = torch.tensor([bad, 0.25])
    step()
    assert p[0] == -1.0 and p[1] != -1.0 and torch.isfinite(p).all()
    assert all(torch.isfinite(a).all() and (a[:, 0] == 0.0).all() for a in values(optimizer, p)[1:])
    told = rf": 1 of 2 coordinates of a parameter of shape \(2,\) were left alone, because {reason} was"
    with pytest.warns(RuntimeWarning, match=told):
        optimizer.check_finite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_parameter_that_overflows_in_its_own_dtype_is_left_alone(path, dtype):
    """Though it would be finite in float32, in which a step computes."""
    p = torch.nn.Parameter(torch.tensor([-1.0, -1.0], dtype=dtype))
    _, step = made(path, [p], Rule.from_text("-g"), lr=1.0035)
    p.grad = torch.tensor([torch.finfo(dtype).max, 2.0], dtype=dtype)
    step()
    assert p[0] == -1.0 and p[1].item() == pytest.approx(-3.007, rel=1e-2)


def test_the_guard_may_be_turned_off(path):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer, step = made(path, [p], nonfinite="off")
    for _ in range(2):
        p.grad = torch.tensor([1.0, torch.nan, 1.0])
        step()
    assert torch.isnan(p).tolist() == [False, True, False] and optimizer.state[p]["step"] == 2


def test_mode_raise_raises_at_once_after_the_finite_coordinates_moved(path):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer, step = made(path, [p], nonfinite="raise")
    p.grad = torch.ones(3)
    step()
    p.grad[1], before = torch.inf, p.detach().clone()
    told = r"1 of 3 coordinates of a parameter of shape \(3,\) .* the gradient was not finite"
    with pytest.raises(NonFiniteError, match=told):
        step()
    assert (p != before).tolist() == [True, False, True] and optimizer.state[p]["step"] == 2


def test_the_host_looks_every_hundredth_step_and_warns_once_of_each_tensor(path, recwarn):
    params = parameters()
    optimizer, step = made(path, params)
    seen = []
    for number in range(1, 4):
        for p in params[:2]:
            p.grad = torch.ones_like(p)
            p.grad.view(-1)[:number] = torch.nan
        for calls in (97, 98, 99):
            optimizer._calls = calls
            step()
            seen.append(sum(warning.category is RuntimeWarning for warning in recwarn))
    assert seen == [0, 0, 2, 2, 2, 2, 2, 2, 2]
    texts = [str(warning.message) for warning in recwarn if warning.category is RuntimeWarning]
    assert "1 of 12 coordinates of a parameter of shape (4, 3)" in texts[0]
    assert "1 of 5 coordinates of a parameter of shape (5,)" in texts[1]


def look(optimizer, step: Callable[[], object], times: int) -> None:
    """Steps at which the host looks."""
    for _ in range(times):
        optimizer._calls = 99
        step()


@pytest.mark.filterwarnings("ignore:.*were left alone:RuntimeWarning")
def test_ten_looks_in_a_row_with_all_of_a_tensor_left_alone_raise_and_nine_do_not(path):
    params = parameters()
    optimizer, step = made(path, params)
    bad, good, one = gradients(3)
    bad[1].fill(np.nan)
    one[1][1:] = np.nan
    for row in (good, one):  # what moves at all is no error
        give(params, bad)
        look(optimizer, step, 9)
        give(params, row)
        look(optimizer, step, 1)
    give(params, one)
    look(optimizer, step, 11)
    give(params, bad)
    look(optimizer, step, 9)
    told = r"5 of 5 .* shape \(5,\) .* the gradient was not finite, at 10 looks in a row"
    with pytest.raises(NonFiniteError, match=told):
        look(optimizer, step, 1)
    assert all(torch.isfinite(p).all() for p in params)
    assert optimizer.state[params[1]]["step"] == 13


@every_optimizer
def test_rules_and_teachers_leave_one_coordinate_alone(make):
    """Every hidden unit of it too."""
    params, others, grads = parameters(), parameters(), gradients(5)
    optimizer, other = make(params), make(others)
    spoiled = copy.deepcopy(grads)
    spoiled[2][1][4] = np.nan
    feed(optimizer, params, spoiled[:2])
    before = values(optimizer, params[1])
    feed(optimizer, params, spoiled[2:3])
    for old, new in zip(before, values(optimizer, params[1]), strict=True):
        assert torch.equal(old[:, 4], new[:, 4])
    feed(optimizer, params, spoiled[3:])
    feed(other, others, grads)
    for k, (p, q) in enumerate(zip(params, others, strict=True)):
        assert optimizer.state[p]["step"] == 5
        for x, y in zip(values(optimizer, p), values(other, q), strict=True):
            n = 4 if k == 1 else x.shape[1]
            torch.testing.assert_close(x[:, :n], y[:, :n], rtol=1e-12, atol=1e-14)
            assert torch.isfinite(x).all()


@every_optimizer
def test_every_optimizer_raises_when_it_is_to(make):
    params = parameters()
    optimizer, bad = make(params, nonfinite="raise"), gradients(1)
    bad[0][0][1, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"1 of 12 .* shape \(4, 3\) .* the gradient was not finite"):
        feed(optimizer, params, bad)
    feed(make(others := parameters(), nonfinite="off"), others, bad * 3)
    assert torch.isnan(others[0][1, 2]) and torch.isfinite(others[0]).sum() == 11


@pytest.mark.parametrize(
    ("name", "lr", "spike"),
    [
        ("lion", 0.01, np.inf),
        ("momentum", 0.01, np.inf),
        ("adam", 0.01, np.inf),
        ("adam", 0.01, 1e30),
        ("rnnprop_tuned", 1.0, np.inf),
        ("rnnprop_tuned", 1.0, 1e30),
    ],
)
def test_after_a_spike_both_coordinates_reach_the_minimum(path, name, lr, spike):
    """An inf in an average of the past would drive a coordinate away, or freeze it, for ever."""
    p = torch.nn.Parameter(torch.ones(2))
    _, step = made(path, [p], Rule.named(name), lr=lr)
    for k in range(300):
        p.grad = 2.0 * p.detach().clone()
        if k == 5:
            p.grad[0] = spike
        step()
    assert p.abs().max() < 0.2


@pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing())
def test_the_compiled_step_takes_what_lies_in_memory_alike(monkeypatch):
    """Transposed, of 16 bits, complex, or empty; what does not is left to the plain step, with its values."""
    base = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)
    alike = [base.clone(), base.clone().t(), base.bfloat16(), base.half(), base.double(), base[:0].clone()]
    alike += [torch.complex(base, -base), base[0, 0].clone()]
    odd = [base[:, ::2], base]
    others = []
    plain = CoordinateOptimizer._step_one
    monkeypatch.setattr(
        CoordinateOptimizer, "_step_one", lambda *args: (others.append(args[2]), plain(*args))[1]
    )
    for foreach, left in ((None, len(odd)), (False, len(alike) + len(odd))):
        params = [torch.nn.Parameter(x.clone(memory_format=torch.preserve_format)) for x in alike]
        params += [torch.nn.Parameter(base.clone()[:, ::2]), torch.nn.Parameter(base.clone())]
        for p in params:
            p.grad = torch.full_like(p, 0.5 + 0.5j if p.is_complex() else 0.5)
        params[-1].grad = params[-1].grad.t().contiguous().t()
        others.clear()
        SymbolicOptimizer(params, AVERAGE, lr=0.1, foreach=foreach).step()
        assert len(others) == left, (foreach, [x.shape for x in others])
        for p, x in zip(params, (*alike, *odd), strict=True):
            moved = torch.view_as_real(p.detach() - x) if p.is_complex() else p.detach() - x
            torch.testing.assert_close(
                moved.double(), torch.full_like(moved, -0.025).double(), rtol=0.0, atol=5e-3
            )


def test_a_tensor_that_is_stepped_no_more_is_looked_at_no_more():
    """One nan of long ago is no reason to stop, nor is a count from before the guard was turned off."""
    frozen, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = SymbolicOptimizer([frozen, other], Rule.named("sgd"), nonfinite="skip")
    frozen.grad, other.grad = torch.full((3,), float("nan")), torch.ones(3)
    optimizer.step()
    frozen.grad = None
    for _ in range(1100):
        optimizer.step()
    alone = torch.nn.Parameter(torch.ones(3))
    alone.grad = torch.full((3,), float("nan"))
    optimizer = SymbolicOptimizer([alone], Rule.named("sgd"), foreach=False)
    optimizer.step()
    optimizer.param_groups[0]["nonfinite"], alone.grad = "off", torch.ones(3)
    for _ in range(1100):
        optimizer.step()


def test_a_rule_with_other_state_is_refused_before_anything_is_changed():
    params = [torch.nn.Parameter(torch.full((8,), float(k))) for k in range(3)]
    optimizer = SymbolicOptimizer(params, Rule.named("momentum"), lr=0.1)
    for p in params:
        p.grad = torch.ones(8)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    optimizer.param_groups[0].update(
        rule=Rule.named("adam").to_json(), constants=Rule.named("adam").constants
    )
    with pytest.raises(L2OError, match="expected 2 arrays of state for every parameter"):
        optimizer.step()
    assert all(map(torch.equal, params, before))


def test_modes_that_watch_operations_see_a_step():
    """``allow_mutation_on_saved_tensors`` keeps what a step overwrites only if it sees the step."""
    w, x = torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.ones(2, requires_grad=True)
    optimizer = SymbolicOptimizer([w], Rule.named("sgd"), lr=0.1)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        loss = (w * x).sum()
        w.grad = torch.ones(2)
        optimizer.step()
        loss.backward()
    assert x.grad.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("foreach", [None, False])
def test_gradients_that_are_views_to_be_negated_or_conjugated_count_as_what_they_stand_for(foreach):
    """Torch keeps the sign in a bit of the view: what lies in memory is the opposite."""
    z = torch.complex(torch.zeros(1), torch.full((1,), 2.0))  # one element: any view of it is contiguous
    minus, conjugate = z.conj().imag, z.conj()
    assert minus.is_neg() and minus.is_contiguous() and conjugate.is_conj()
    params = [torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1, dtype=torch.complex64))]
    for p, g in zip(params, (minus, conjugate), strict=True):
        p.grad = g
        optimizer = SymbolicOptimizer([p], Rule.named("sgd"), lr=1.0, foreach=foreach)
        for k in (1, 2):  # a step like the one before is taken another way
            optimizer.step()
            assert p.item() == (2.0 * k if p is params[0] else 2.0j * k)


def test_loaded_state_is_looked_at_anew():
    """Compiled code believes the addresses of the step before; state of other numbers may lie there now."""
    p = torch.nn.Parameter(torch.zeros(4))
    p.grad = torch.ones(4)
    optimizer = SymbolicOptimizer([p], Rule.named("adam"))
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert not any(bound.steps for bound in optimizer._bound.values())


def test_a_group_that_raises_makes_no_other_be_looked_at_more_often():
    """Ten looks in a row are a thousand steps of the group that skips, whatever its neighbour does."""
    dead, fine = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    groups = [{"params": [dead]}, {"params": [fine], "nonfinite": "raise"}]
    optimizer = SymbolicOptimizer(groups, Rule.named("sgd"), lr=1e-3)
    dead.grad, fine.grad = torch.full((3,), float("nan")), torch.ones(3)
    with pytest.warns(RuntimeWarning, match="3 of 3 coordinates"):
        for _ in range(999):
            optimizer.step()
    with pytest.raises(NonFiniteError, match="at 10 looks in a row"):
        optimizer.step()
