"""``Recorder`` where torch alone is asked: its hooks, closures, groups, scalers and layouts.

What both frameworks do is in ``tests/backends/test_recorder.py``.
"""

from collections import OrderedDict

import numpy as np
import pytest

from common.errors import L2OError
from interchange.commands.record import RecordConfig
from interchange.files.trajectories import load_trajectories

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from tests.helpers.recordings import saved, whole  # noqa: E402
from torch_impl import Recorder  # noqa: E402
from torch_impl.problems.tasks import table_task  # noqa: E402
from torch_impl.record import record  # noqa: E402
from torch_impl.rollout import descend, leaves  # noqa: E402

EVERYTHING = 10**6


def network(dtype: torch.dtype = torch.float64) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).to(dtype)


def backward(model: torch.nn.Module, step: int) -> torch.Tensor:
    """The loss of a batch of one step; its gradient is left in the parameters."""
    generator = torch.Generator().manual_seed(step)
    like = next(model.parameters())
    x = torch.randn(16, 4, generator=generator).to(like.dtype)
    loss = F.mse_loss(model(x), x[:, :3].sin())
    model.zero_grad()
    loss.backward()
    return loss.detach()


def flat(tensors) -> np.ndarray:
    return np.concatenate([t.detach().reshape(-1).numpy() for t in tensors])


def grads(model: torch.nn.Module) -> np.ndarray:
    return flat(p.grad for p in model.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, 0.01, fused=True),
        lambda p: torch.optim.SGD(p, torch.tensor(0.05)),
    ],
    ids=["sgd", "fused adam", "a tensor as lr"],
)
def test_torchs_own_optimizers_are_recorded_by_hooks_that_go_again(make, tmp_path):
    model = network()
    recorder = Recorder(optimizer := make(model.parameters()), coordinates=EVERYTHING)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    gs, ys = [], []
    for step in range(8):
        recorder.loss(backward(model, step))
        lr, before = float(optimizer.param_groups[0]["lr"]), flat(model.parameters())
        gs.append(grads(model))
        optimizer.step()
        ys.append((flat(model.parameters()) - before) / lr)
        schedule.step()
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_array_equal(got.g, gs)
    np.testing.assert_allclose(got.y, ys, rtol=1e-12, atol=1e-15)
    assert f'"name":"{type(optimizer).__name__}"' in got.source_json and got.params_shapes[0] == (6, 4)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_sgd_is_recorded_as_record_records_it(tmp_path):
    settings = {"problem": "digits-mlp", "steps": 6, "runs": 3, "samples": 6 * 3 * 50, "dtype": "float64"}
    config = RecordConfig(source="sgd:lr=0.1", out=str(tmp_path / "want.h5"), seed=4, quiet=True, **settings)
    want = load_trajectories(record(config))
    recorder = None
    for number in range(3):
        task = table_task(config, "record", number)
        parameters = leaves(task)
        optimizer = torch.optim.SGD(parameters, 0.1)
        if recorder is None:
            recorder = Recorder(optimizer, coordinates=50, seed=4)
        else:
            recorder.start_run(optimizer)
        descend(task, parameters, optimizer, 6)
    got = saved(recorder, tmp_path)
    assert got.split == want.split and got.features == want.features
    for name, run in want.runs.items():
        for field in ("param_index", "flat_index", "g", "x"):
            np.testing.assert_array_equal(getattr(got.runs[name], field), getattr(run, field))
        np.testing.assert_allclose(got.runs[name].y, run.y, rtol=1e-9, atol=1e-15)
        assert got.runs[name].params_shapes == run.params_shapes


def test_groups_have_learning_rates_of_their_own_and_names_where_they_are_given(tmp_path):
    model = network()
    groups = [
        {"params": list(model[0].named_parameters("in")), "lr": 0.5},
        {"params": list(model[2].named_parameters("out"))},
    ]
    recorder = Recorder(optimizer := torch.optim.SGD(groups, 0.01), coordinates=EVERYTHING)
    for step in range(3):
        backward(model, step)
        optimizer.step()
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_allclose(got.y, -got.g, rtol=1e-10, atol=1e-14)
    assert got.params_names == ("in.weight", "in.bias", "out.weight", "out.bias")


@pytest.mark.parametrize(
    ("make", "by"),
    [
        (lambda p: torch.optim.Adam(p, 0.01), lambda step, closure: step(closure)),
        (lambda p: torch.optim.LBFGS(p, 0.1, max_iter=1), lambda step, closure: step(closure=closure)),
    ],
    ids=["by position", "by name"],
)
def test_the_gradient_and_the_loss_of_a_closure_are_taken(make, by, tmp_path):
    model, gs, losses = network(), [], []
    recorder = Recorder(optimizer := make(model.parameters()))
    for step in range(5):
        losses.append(float(by(optimizer.step, lambda step=step: backward(model, step))))
        gs.append(grads(model))
    got = whole(saved(recorder, tmp_path))
    assert got.loss.tolist() == losses
    np.testing.assert_array_equal(got.g, gs)
    assert np.abs(got.y).max() > 0


def test_two_evaluations_of_a_closure_in_a_step_are_refused():
    model = network()
    Recorder(optimizer := torch.optim.LBFGS(model.parameters(), 0.1, max_iter=4))
    with pytest.raises(L2OError, match=r"LBFGS evaluated its closure twice in a step.*max_iter=1"):
        optimizer.step(lambda: backward(model, 0))


def test_steps_without_any_gradient_and_parameters_that_come_later_are_left_out(tmp_path, caplog):
    model = network()
    model[0].bias.requires_grad_(False)
    recorder = Recorder(optimizer := torch.optim.SGD(model.parameters(), 0.1), coordinates=EVERYTHING)
    want = []
    for step in range(6):
        backward(model, step)
        if step == 2:  # nothing to do for the optimizer, and nothing to record
            model.zero_grad()
        else:
            want.append(flat([model[0].weight.grad, model[2].weight.grad, model[2].bias.grad]))
        if step == 3:
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
        optimizer.step()
    got = whole(saved(recorder, tmp_path))
    assert caplog.messages == [] and set(got.param_index.tolist()) == {0, 2, 3}
    np.testing.assert_array_equal(got.g, want)
    np.testing.assert_allclose(got.y, -got.g, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scalers_gradients_are_unscaled_and_its_skipped_steps_left_out(fused, tmp_path):
    model = network(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), 0.125, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    recorder = Recorder(optimizer, coordinates=EVERYTHING)
    want = []
    for step in range(5):
        loss = backward(model, step)
        want += [grads(model)] if step != 2 else []
        recorder.loss(loss)
        scaler.scale(loss)  # a scaler starts with its first loss
        for p in model.parameters():
            p.grad *= scaler.get_scale() * (float("inf") if step == 2 else 1.0)
        scaler.step(optimizer)
        scaler.update()
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_allclose(got.g, want, rtol=1e-6)
    np.testing.assert_allclose(got.y, -got.g, rtol=1e-3, atol=2e-6)


def test_places_count_in_the_logical_order_of_a_tensor_whatever_its_strides(tmp_path):
    p = torch.nn.Parameter(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))
    assert not p.is_contiguous()
    recorder = Recorder(optimizer := torch.optim.SGD([p], 1.0), coordinates=50)
    p.grad = torch.arange(120.0).view(2, 3, 4, 5)
    optimizer.step()
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_array_equal(got.g[0], got.flat_index)
    np.testing.assert_array_equal(got.y[0], -got.flat_index)


@pytest.mark.parametrize(
    ("p", "grad", "message"),
    [
        (
            torch.ones(8, 2),
            torch.sparse_coo_tensor([[0]], torch.ones(1, 2), (8, 2), check_invariants=True),
            "expected a dense gradient, got a sparse one; set sparse=False",
        ),
        (
            torch.ones(8, dtype=torch.complex64),
            torch.ones(8, dtype=torch.complex64),
            "expected real floating point, got torch.complex64",
        ),
    ],
    ids=["sparse", "complex"],
)
def test_gradients_that_cannot_be_recorded_are_refused(p, grad, message):
    p = torch.nn.Parameter(p)
    Recorder(optimizer := torch.optim.SGD([p], 0.1))
    p.grad = grad
    with pytest.raises(L2OError, match=f"^param_0: {message}"):
        optimizer.step()


class Accelerated(torch.optim.Optimizer):
    """As accelerate's: an Optimizer by name, whose own constructor is not called."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Lookahead(Accelerated):
    """As timm's: hooks that nobody calls, state of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._base_optimizer = self.optimizer = optimizer
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()


class Bare(Accelerated):
    """A wrapper that hides what it steps."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.hidden = optimizer

    param_groups = property(lambda self: self.hidden.param_groups)


def recorded(path, wrap, compiled: bool = False):
    p = torch.nn.Parameter(torch.linspace(-2.0, 3.0, 8))
    optimizer = wrap(torch.optim.SGD([p], lr=0.1))
    recorder = Recorder(optimizer)
    step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
    for _ in range(4):
        p.grad = 2.0 * p.detach()
        step()
    recorder.save(path)
    return next(iter(load_trajectories(path).runs.values()))


@pytest.mark.parametrize(
    ("wrap", "compiled"),
    [
        (lambda o: o, True),
        (Accelerated, False),
        (Lookahead, False),
        (lambda o: Accelerated(Lookahead(o)), False),
    ],
)
def test_wrapped_and_compiled_optimizers_are_recorded_as_plain_ones(wrap, compiled, tmp_path):
    plain = recorded(tmp_path / "plain.h5", lambda o: o)
    other = recorded(tmp_path / "other.h5", wrap, compiled)
    for name in ("g", "y", "theta"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(other, name))


def test_a_wrapper_without_hooks_is_one_line():
    with pytest.raises(L2OError, match=r"Bare: expected an optimizer whose steps have hooks, got a wrapper"):
        Recorder(Bare(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)))
