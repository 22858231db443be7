"""What torch asks of its own optimizers about input that makes no sense, and how they show themselves."""

import pytest

from common.errors import L2OError
from interchange.files.weights import Teacher
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from tests.helpers.torch_side import optimizer  # noqa: E402
from torch_impl.optimizers.optimizers import SymbolicOptimizer  # noqa: E402

ADAM = Rule.named("adam")


def parameters() -> list[torch.Tensor]:
    return [torch.ones(10, 5, requires_grad=True), torch.ones(10, requires_grad=True)]


@pytest.mark.parametrize(
    ("given", "options"),
    [(ADAM, {"foreach": False}), (ADAM, {"foreach": True}), (Teacher.named("rp_s"), {})],
    ids=["forloop", "foreach", "teacher"],
)
def test_rosenbrock_sparse_is_refused_before_anything_changes(given, options):
    params = [torch.ones(3, requires_grad=True), torch.ones(3, 2, requires_grad=True)]
    params[0].grad = torch.ones(3)
    params[1].grad = torch.sparse_coo_tensor([[0]], torch.ones(1, 2), (3, 2), check_invariants=True)
    one = optimizer(params, given, **options)
    with pytest.raises(RuntimeError, match=r"does not support sparse gradients; use \.to_dense\(\)"):
        one.step()
    assert all((p == 1.0).all() for p in params) and not any(one.state.values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: {"params": p[0]}, TypeError, "iterable of Tensors or dicts"),
        (lambda p: {"params": []}, ValueError, "empty parameter list"),
        (lambda p: {"params": [1.0]}, TypeError, "can only optimize Tensors"),
        (
            lambda p: {"params": [{"params": p[:1]}, {"params": p[:1]}]},
            ValueError,
            "more than one parameter group",
        ),
        (lambda p: {"params": [{"params": {*p}}]}, TypeError, "ordered collections"),
        (lambda p: {"params": [p[0] * 2.0]}, ValueError, "non-leaf"),
        (lambda p: {"params": [("a", p[0]), p[1]]}, ValueError, "names"),
        (lambda p: {"lr": torch.tensor([0.1, 0.2])}, ValueError, "Tensor lr must be 1-element"),
        (lambda p: {"lr": torch.tensor(-1.0)}, ValueError, "lr: expected"),
        (lambda p: {"params": [{"params": p[:1], "lr": -1.0}]}, ValueError, "lr: expected"),
        (lambda p: {"constants": {"gamma": 1.0}}, L2OError, "unknown constant 'gamma'; known: beta1"),
        (lambda p: {"constants": {"beta1": 1.5}}, L2OError, "beta1"),
        (lambda p: {"constants": {"eps": torch.ones(2)}}, L2OError, "constant 'eps': expected one number"),
        (lambda p: {"params": [{"params": p[:1], "rule": "none.json"}]}, L2OError, "none.json"),
    ],
)
def test_error_inputs(change, error, message):
    params = parameters()
    with pytest.raises(error, match=message):
        SymbolicOptimizer(**({"params": params, "rule": ADAM} | change(params)))


@pytest.mark.parametrize("given", [ADAM, Teacher.named("rp_s")], ids=["rule", "teacher"])
def test_parameters_that_cannot_take_a_fraction_are_refused(given):
    one = optimizer(parameters(), given)
    with pytest.raises(ValueError, match=r"expected floating point or complex numbers, got torch\.int64"):
        one.add_param_group({"params": [torch.zeros(3, dtype=torch.int64)]})
    assert len(one.param_groups) == 1
    good = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    one.add_param_group({"params": iter(good)})
    assert one.param_groups[1]["params"] == good


def test_a_parameter_twice_in_a_group_is_warned_of():
    params = parameters()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        SymbolicOptimizer([params[0], params[0]], ADAM)


def test_repr_shows_the_equation_and_not_the_file():
    shown = repr(SymbolicOptimizer(parameters(), ADAM, lr=0.5))
    assert "    lr: 0.5\n" in shown and "SymbolicOptimizer (\nParameter Group 0\n" in shown
    assert "    rule: -ema_hat(g, beta1) / (sqrt(ema_hat(square(g), beta2)) + eps)\n" in shown
    assert "sha256" not in shown and "    constants: {'beta1': 0.9" in shown


def test_named_parameters_keep_their_names():
    one = SymbolicOptimizer(torch.nn.Linear(2, 1).named_parameters(), ADAM)
    assert one.param_groups[0]["param_names"] == ["weight", "bias"]
    assert one.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
