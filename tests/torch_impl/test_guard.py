"""The guard where torch alone is asked: layouts, loaded state, groups, and modes that watch a step.

What both frameworks do is in ``tests/backends/test_guard.py``.
"""

import pytest

from common import kernels
from common.errors import L2OError
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from torch_impl.optimizers.base import CoordinateOptimizer  # noqa: E402
from torch_impl.optimizers.optimizers import NonFiniteError, SymbolicOptimizer  # noqa: E402

SGD = Rule.named("sgd")
AVERAGE = Rule.from_text("-c0 * ema_hat(g, b) - 0.1 * tanh(lag(g, 1)) / t", {"c0": 0.5, "b": 0.8})


def vector(grad: float, size: int = 3) -> torch.nn.Parameter:
    """A parameter of ones with a gradient."""
    p = torch.nn.Parameter(torch.ones(size))
    p.grad = torch.full((size,), grad)
    return p


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
    frozen, other = vector(torch.nan), vector(1.0)
    optimizer = SymbolicOptimizer([frozen, other], SGD, nonfinite="skip")
    optimizer.step()
    frozen.grad = None
    for _ in range(1100):
        optimizer.step()
    alone = vector(torch.nan)
    optimizer = SymbolicOptimizer([alone], SGD, foreach=False)
    optimizer.step()
    optimizer.param_groups[0]["nonfinite"], alone.grad = "off", torch.ones(3)
    for _ in range(1100):
        optimizer.step()


def test_a_rule_with_other_state_is_refused_before_anything_is_changed():
    params, adam = [vector(1.0) for _ in range(3)], Rule.named("adam")
    optimizer = SymbolicOptimizer(params, Rule.named("momentum"), lr=0.1)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    optimizer.param_groups[0].update(rule=adam.to_json(), constants=adam.constants)
    with pytest.raises(L2OError, match="expected 2 arrays of state for every parameter"):
        optimizer.step()
    assert all(map(torch.equal, params, before))


def test_modes_that_watch_operations_see_a_step():
    """``allow_mutation_on_saved_tensors`` keeps what a step overwrites only if it sees the step."""
    w, x = torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.ones(2, requires_grad=True)
    optimizer = SymbolicOptimizer([w], SGD, lr=0.1)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        loss = (w * x).sum()
        w.grad = torch.ones(2)
        optimizer.step()
        loss.backward()
    assert x.grad.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("kind", ["negated", "conjugated"])
def test_gradients_that_are_views_to_be_negated_or_conjugated_count_as_what_they_stand_for(kind, foreach):
    """Torch keeps the sign in a bit of the view: what lies in memory is the opposite."""
    z = torch.complex(torch.zeros(1), torch.full((1,), 2.0))  # one element: any view of it is contiguous
    g = z.conj().imag if kind == "negated" else z.conj()
    assert (g.is_neg() and g.is_contiguous()) if kind == "negated" else g.is_conj()
    p = torch.nn.Parameter(torch.zeros(1, dtype=g.dtype))
    p.grad = g
    optimizer = SymbolicOptimizer([p], SGD, lr=1.0, foreach=foreach)
    for k in (1, 2):  # a step like the one before is taken another way
        optimizer.step()
        assert p.item() == (2.0 * k if kind == "negated" else 2.0j * k)


def test_loaded_state_is_looked_at_anew():
    """Compiled code believes the addresses of the step before; state of other numbers may lie there now."""
    optimizer = SymbolicOptimizer([vector(1.0)], Rule.named("adam"))
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert not any(bound.steps for bound in optimizer._bound.values())


def test_a_group_that_raises_makes_no_other_be_looked_at_more_often():
    """Ten looks in a row are a thousand steps of the group that skips, whatever its neighbour does."""
    groups = [{"params": [vector(torch.nan)]}, {"params": [vector(1.0)], "nonfinite": "raise"}]
    optimizer = SymbolicOptimizer(groups, SGD, lr=1e-3)
    with pytest.warns(RuntimeWarning, match="3 of 3 coordinates"):
        for _ in range(999):
            optimizer.step()
    with pytest.raises(NonFiniteError, match="at 10 looks in a row"):
        optimizer.step()
