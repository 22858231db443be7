"""What torch asks of its own optimizers about input that makes no sense, and how they show themselves."""

import pytest

from common.errors import L2OError
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from torch_impl.optimizers.optimizers import SymbolicOptimizer  # noqa: E402

ADAM = Rule.named("adam")


def parameters() -> list[torch.Tensor]:
    return [torch.ones(10, 5, requires_grad=True), torch.ones(10, requires_grad=True)]


@pytest.mark.parametrize("foreach", [False, True])
def test_rosenbrock_sparse_is_refused_before_anything_changes(foreach):
    params = [torch.ones(3, requires_grad=True), torch.ones(3, 2, requires_grad=True)]
    params[0].grad = torch.ones(3)
    params[1].grad = torch.sparse_coo_tensor([[0]], torch.ones(1, 2), (3, 2), check_invariants=True)
    optimizer = SymbolicOptimizer(params, ADAM, foreach=foreach)
    with pytest.raises(RuntimeError, match=r"does not support sparse gradients; use \.to_dense\(\)"):
        optimizer.step()
    assert all((p == 1.0).all() for p in params)


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
        (lambda p: {"lr": -1e-2}, ValueError, "lr: expected a number >= 0, got -0.01"),
        (lambda p: {"weight_decay": -1}, ValueError, "weight_decay: expected"),
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


def test_a_parameter_twice_in_a_group_is_warned_of():
    params = parameters()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        SymbolicOptimizer([params[0], params[0]], ADAM)


def test_repr_shows_the_equation_and_not_the_file():
    params = parameters()
    shown = repr(SymbolicOptimizer(params, ADAM, lr=0.5))
    assert "    lr: 0.5\n" in shown and "SymbolicOptimizer (\nParameter Group 0\n" in shown
    assert "    rule: -ema_hat(g, beta1) / (sqrt(ema_hat(square(g), beta2)) + eps)\n" in shown
    assert "sha256" not in shown and "    constants: {'beta1': 0.9" in shown


def test_named_parameters_keep_their_names():
    module = torch.nn.Linear(2, 1)
    optimizer = SymbolicOptimizer(module.named_parameters(), ADAM)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
