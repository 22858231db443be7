"""Rules that see tensors where torch alone is asked: compiled branches, modes, dtypes, options, saving."""

import copy

import numpy as np
import pytest

from common import kernels
from common.errors import L2OError
from interchange.rule.rule import Rule
from tests.helpers.layers import FACTORS, MUON, RULES, SHAPES, gradients, updates
from tests.helpers.torch_side import feed, parameters

torch = pytest.importorskip("torch")

from torch_impl.optimizers.optimizers import SymbolicOptimizer  # noqa: E402

FLAT = Rule.from_text("by_matrix(-polar(g), -g / (abs(g) + 1e-8))")


def test_canonical_layout_by_axes_is_the_frameworks_own_layout():
    for rule in RULES.values():
        rows, params = gradients("usual"), parameters([np.zeros(shape) for shape in SHAPES])
        groups = [
            {"params": [p for p in params if p.dim() > 1], "matrix": ((-1,), None)},
            {"params": [p for p in params if p.dim() < 2]},
        ]
        optimizer = SymbolicOptimizer(groups, rule)
        for row in rows:
            feed(optimizer, params, row)
        for p, u in zip(params, updates(rule, rows), strict=True):
            np.testing.assert_allclose(p.detach(), u.sum(0), rtol=0, atol=1e-11 * np.abs(u).max(initial=0.0))


@pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing())
def test_tensors_on_a_branch_without_operators_keep_their_compiled_code(monkeypatch):
    """And need not be contiguous; matrices alone are stepped plainly, each whole."""
    params, seen = parameters([np.zeros(shape) for shape in ((300, 400), (7,), (70000,), ())]), []
    params.append(torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.complex64)))
    plain = SymbolicOptimizer._write
    monkeypatch.setattr(
        SymbolicOptimizer, "_write", lambda self, *a: seen.append(tuple(a[1].shape)) or plain(self, *a)
    )
    for foreach, expected in (
        (None, [(300, 400)]),
        (False, [(300, 400), (7,), (65536,), (4464,), (), (3, 4, 2)]),
    ):
        seen.clear()
        for p in params:
            p.grad = torch.ones_like(p)
        SymbolicOptimizer(params, FLAT, foreach=foreach).step()
        assert seen == expected
    for p in params[1:4]:
        torch.testing.assert_close(p.detach(), torch.full_like(p, -2.0), rtol=1e-7, atol=0)


def test_complex_tensors_are_rows_of_pairs_whatever_the_option_says():
    z = torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.complex128))
    z.grad = torch.complex(torch.ones(3, 4), -torch.full((3, 4), 3.0)).to(torch.complex128)
    rule = Rule.from_text("by_matrix(0 * g, -g / mean(abs(g))) + 0 * ema(row_mean(g), 0.5)")
    optimizer = SymbolicOptimizer([z], rule, matrix=True)
    optimizer.step()
    torch.testing.assert_close(z.detach(), -z.grad / 2.0)
    assert optimizer.state[z]["s0"].shape == (1, 1, 1)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()


@pytest.mark.parametrize("option", ["rows", ((0,), (0,)), ((0, 1), (2,)), ((5,), None), ((0,), (1,), 3)])
def test_an_option_that_fits_no_tensor_is_refused_and_the_group_is_not_taken(option):
    p, q = parameters([np.zeros((4, 3)), np.zeros((4, 3))])
    optimizer = SymbolicOptimizer([p], MUON)
    with pytest.raises(L2OError, match=r"^(matrix: )?expected [^\n]+$"):
        optimizer.add_param_group({"params": [q], "matrix": option})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(L2OError, match=r"expected axes of a tensor of shape \(\)"):
        SymbolicOptimizer(parameters([np.zeros(())]), MUON, matrix=True)


def test_a_group_that_joins_has_its_own_view():
    p, q = parameters([np.zeros((4, 3)), np.zeros((4, 3))])
    optimizer = SymbolicOptimizer([p], FLAT)
    optimizer.add_param_group({"params": [q], "matrix": False})
    feed(optimizer, [p, q], [np.full((4, 3), 2.0)] * 2)
    assert float(p.detach().abs().max()) < 0.5 and float(q.detach().max()) == pytest.approx(-1.0)


def test_state_of_another_view_is_refused_before_anything_is_changed():
    """As it may have as many arrays, and shapes that broadcast."""
    params = parameters([np.zeros((4, 3)), np.zeros((3, 4))])
    optimizer = SymbolicOptimizer(params, FACTORS)
    feed(optimizer, params, [np.ones((4, 3)), np.ones((3, 4))])
    before, saved = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[0]["matrix"] = False
    with pytest.raises(L2OError, match=r"clear optimizer\.state when the rule or matrix changes"):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    saved["param_groups"][0]["matrix"] = ((1,), (0,))
    with pytest.raises(L2OError, match="expected arrays of state of shapes"):
        optimizer.load_state_dict(saved)


def test_dicts_and_pickles_from_before_there_were_views_are_read():
    params = parameters([np.zeros((4, 3))])
    optimizer = SymbolicOptimizer(params, MUON)
    feed(optimizer, params, [np.ones((4, 3))])
    saved, pickled = copy.deepcopy(optimizer.state_dict()), copy.copy(optimizer.__getstate__())
    del saved["param_groups"][0]["matrix"]
    optimizer.load_state_dict(saved)
    pickled["defaults"] = {k: v for k, v in pickled["defaults"].items() if k != "matrix"}
    for group in pickled["param_groups"]:
        group.pop("matrix", None)
    found = SymbolicOptimizer.__new__(SymbolicOptimizer)
    found.__setstate__(pickled)
    feed(found, params, [np.ones((4, 3))])
    assert found.param_groups[0]["matrix"] is None


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_gradients_flow_through_a_step(rule):
    """To gradients, constants and the learning rate, as differences say."""
    names = list(rule.constants)

    def moved(lr, *given):
        g, constants = given[:2], dict(zip(names, given[2:], strict=True))
        params = [torch.zeros(4, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)]
        optimizer = SymbolicOptimizer(params, rule, lr, constants=constants, differentiable=True)
        for scale in (1.0, -0.5):
            for p, slope in zip(params, g, strict=True):
                p.grad = scale * slope
            optimizer.step()
        return tuple(params)

    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 3), (5,))]
    inputs += [torch.tensor(rule.constants[name], dtype=torch.float64) for name in names]
    inputs = [x.requires_grad_() for x in (torch.tensor(0.3, dtype=torch.float64), *inputs)]
    assert torch.autograd.gradcheck(moved, inputs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("op", ["polar", "orth"])
def test_at_zero_no_gradient_is_nan_though_the_operators_divide_by_norms(op):
    g = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    p = torch.zeros(4, 3, dtype=torch.float64)
    optimizer = SymbolicOptimizer([p], Rule.from_text(f"{op}(g)"), differentiable=True)
    p.grad = g
    optimizer.step()
    p.sum().backward()
    assert not g.grad.any() and not p.detach().any()


def test_bfloat16_parameters_are_computed_in_float32_under_autocast_too():
    """A matrix whose singular values 16 bits would blur."""
    (g,), *_ = gradients("usual", ((64, 32),), 1)
    p, q = (
        torch.nn.Parameter(torch.zeros(64, 32, dtype=torch.bfloat16)),
        torch.nn.Parameter(torch.zeros(64, 32)),
    )
    p.grad = torch.tensor(g).bfloat16()
    q.grad = p.grad.float()
    optimizer, other = SymbolicOptimizer([p], MUON), SymbolicOptimizer([q], MUON)
    with torch.autocast("cpu", torch.bfloat16):
        optimizer.step()
    other.step()
    torch.testing.assert_close(optimizer.state[p]["s0"], other.state[q]["s0"], rtol=0, atol=0)
    assert torch.equal(p, q.bfloat16())
    r = torch.nn.Parameter(torch.zeros(64, 32))
    r.grad = q.grad
    with torch.autocast("cpu", torch.bfloat16):
        SymbolicOptimizer([r], MUON).step()
    assert torch.equal(r, q)


def test_a_graph_is_made_twice_and_not_again():
    params = [torch.nn.Parameter(torch.zeros(4, 3)), torch.nn.Parameter(torch.zeros(5))]
    optimizer, frames = SymbolicOptimizer(params, MUON), []
    torch._dynamo.reset()

    def backend(graph, _):
        frames.append(graph)
        return graph.forward

    step = torch.compile(optimizer.step, backend=backend)
    for k in range(6):
        optimizer.param_groups[0]["lr"] = 1.0 / (k + 1)
        for p in params:
            p.grad = torch.ones_like(p)
        step()
        if k == 1:
            made = len(frames)
    assert made == len(frames)
