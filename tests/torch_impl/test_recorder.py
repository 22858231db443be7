"""``Recorder`` on loops of one's own: its numbers, its runs and splits, and what it refuses."""

import itertools
import logging

import numpy as np
import pytest

from common.data.coordinates import choose_coordinates
from common.errors import L2OError
from common.tables.teachers import TEACHERS, initial_weights
from interchange.commands.record import RecordConfig
from interchange.files.trajectories import Run, Trajectories, load_trajectories
from interchange.files.weights import Teacher
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from torch_impl import Recorder  # noqa: E402
from torch_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer  # noqa: E402
from torch_impl.problems.tasks import table_task  # noqa: E402
from torch_impl.record import record  # noqa: E402
from torch_impl.rollout import descend, leaves  # noqa: E402

TEACHER = Teacher(TEACHERS["rp_s"], initial_weights(TEACHERS["rp_s"], 1), "0" * 64, "test")
RULE = Rule.from_text("-c0 * ema(g, 0.8)", {"c0": 0.3})
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "fused adam": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "a tensor as lr": lambda p: torch.optim.SGD(p, torch.tensor(0.05)),
    "rule": lambda p: SymbolicOptimizer(p, RULE, 0.5),
    "teacher": lambda p: LearnedOptimizer(p, TEACHER),
}
EVERYTHING = 10**6


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.nn.Sequential:
    torch.manual_seed(seed)
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


def trained(recorder: Recorder, model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        recorder.loss(backward(model, step))
        optimizer.step()


def flat(tensors) -> np.ndarray:
    return np.concatenate([t.detach().reshape(-1).numpy() for t in tensors])


def saved(recorder: Recorder, folder) -> Trajectories:
    return load_trajectories(recorder.save(folder / "t.h5"))


def whole(trajectories: Trajectories) -> Run:
    """The one run whose coordinates were dealt out, put together again in the order of its elements."""
    parts = list(trajectories.runs.values())
    order = np.lexsort(
        (np.concatenate([p.flat_index for p in parts]), np.concatenate([p.param_index for p in parts]))
    )
    fields = {
        name: np.concatenate([getattr(p, name) for p in parts], 1)[:, order] for name in ("x", "g", "y")
    }
    for name in ("param_index", "flat_index"):
        fields[name] = np.concatenate([getattr(p, name) for p in parts])[order]
    return Run(**(vars(parts[0]) | fields))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_step_is_recorded_as_it_was_and_the_training_is_left_as_it_is(make, tmp_path):
    model, alone = network(), network()
    optimizer, other = make(model.parameters()), make(alone.parameters())
    schedules = [torch.optim.lr_scheduler.StepLR(one, 3, 0.5) for one in (optimizer, other)]
    recorder = Recorder(optimizer, coordinates=EVERYTHING)
    gs, ys, losses = [], [], []
    for step in range(8):
        lr, before = float(other.param_groups[0]["lr"]), flat(alone.parameters())
        losses.append(float(backward(alone, step)))
        gs.append(flat(p.grad for p in alone.parameters()))
        other.step()
        ys.append((flat(alone.parameters()) - before) / lr)
        recorder.loss(backward(model, step))
        optimizer.step()
        for schedule in schedules:
            schedule.step()
    np.testing.assert_array_equal(flat(model.parameters()), flat(alone.parameters()))
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_array_equal(got.g, gs)
    np.testing.assert_allclose(got.y, ys, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(got.loss, losses)
    assert (got.source_kind, got.outcome, got.num_steps, got.scale) == ("user", "ok", 8, 1.0)
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


def test_features_are_their_expressions_over_the_recorded_gradient(tmp_path):
    features = {"g": "g", "slow": "ema_hat(g, 0.9) / (1 + t)"}
    model = network()
    recorder = Recorder(optimizer := torch.optim.SGD(model.parameters(), 0.1), features=features)
    trained(recorder, model, optimizer, 12)
    got = whole(saved(recorder, tmp_path))
    assert got.x.shape == (12, 51, 2)
    np.testing.assert_array_equal(got.x[:, :, 0], got.g)
    want = Rule.from_text("ema_hat(g, 0.9) / (1 + t)").evaluate({"g": got.g})
    np.testing.assert_allclose(got.x[:, :, 1], want, rtol=1e-12, atol=1e-16)


def test_features_of_the_table_are_named_as_on_the_command_line(tmp_path):
    model = network()
    recorder = Recorder(optimizer := torch.optim.SGD(model.parameters(), 0.1), features="mt+g")
    trained(recorder, model, optimizer, 2)
    assert saved(recorder, tmp_path).features == {
        "m_tilde": TEACHERS["rnnprop"].expressions()["m_tilde"],
        "g": "g",
    }


def test_groups_have_learning_rates_of_their_own_and_names_where_they_are_given(tmp_path):
    model = network()
    groups = [
        {"params": list(model[0].named_parameters("in")), "lr": 0.5},
        {"params": list(model[2].named_parameters("out"))},
    ]
    recorder = Recorder(optimizer := torch.optim.SGD(groups, 0.01), coordinates=EVERYTHING)
    trained(recorder, model, optimizer, 3)
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_allclose(got.y, -got.g, rtol=1e-10, atol=1e-14)
    assert got.params_names == ("in.weight", "in.bias", "out.weight", "out.bias")


@pytest.mark.parametrize("runs", [1, 2])
def test_of_one_or_two_runs_the_coordinates_are_dealt_out_alike_in_every_tensor(runs, tmp_path):
    recorder = None
    for seed in range(runs):
        model = network(seed)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        recorder = recorder or Recorder(optimizer, coordinates=43)
        if seed:
            recorder.start_run(optimizer)
        trained(recorder, model, optimizer, 4)
    got = saved(recorder, tmp_path)
    assert got.config["held_out"] == "coordinates" and len(got.runs) == 3 * runs
    for number in range(runs):
        names = [f"{number:06d}-{part}" for part in ("train", "valid", "test")]
        assert [got.split[part][number] for part in ("train", "valid", "test")] == names
        parts = [got.runs[name] for name in names]
        seen = [set(zip(p.param_index.tolist(), p.flat_index.tolist(), strict=True)) for p in parts]
        assert [len(part) for part in seen] == [27, 8, 8] and len(set.union(*seen)) == 43
        for part in parts[1:]:
            assert set(part.param_index.tolist()) >= {0, 2}


def test_three_runs_are_held_out_as_runs_and_drawn_anew(tmp_path):
    recorder = None
    for seed in range(3):
        model = network(seed)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        recorder = recorder or Recorder(optimizer, coordinates=20)
        if seed:
            recorder.start_run(optimizer)
        trained(recorder, model, optimizer, 4 + seed)
    got = saved(recorder, tmp_path)
    assert got.split == {"train": ("000000",), "valid": ("000001",), "test": ("000002",)}
    assert [len(run.step) for run in got.runs.values()] == [4, 5, 6] and got.config["held_out"] == "runs"
    places = [list(zip(run.param_index, run.flat_index, strict=True)) for run in got.runs.values()]
    assert places[0] != places[1] != places[2]


def test_the_loss_of_a_closure_is_taken_and_a_missing_one_is_the_last_or_zero(tmp_path):
    losses = {}
    for name in ("closure", "sometimes", "never"):
        model = network()
        recorder = Recorder(optimizer := torch.optim.Adam(model.parameters(), 0.01))
        want = []
        for step in range(5):
            if name == "closure":
                want.append(float(optimizer.step(lambda step=step, model=model: backward(model, step))))
                continue
            loss = backward(model, step)
            want.append(float(loss))
            if name == "sometimes" and step % 2:
                recorder.loss(loss)
            optimizer.step()
        (tmp_path / name).mkdir()
        got = whole(saved(recorder, tmp_path / name))
        losses[name] = got.loss.tolist()
        assert ("no loss was given, 0 stands for it" in got.outcome) == (name == "never")
        assert np.abs(got.g).max() > 0.01
    assert losses["closure"] == want
    assert losses["sometimes"] == [want[1], want[1], want[1], want[3], want[3]]
    assert losses["never"] == [0.0] * 5


def test_a_closure_given_by_name_is_watched_too_and_two_evaluations_are_refused(tmp_path):
    model = network()
    recorder = Recorder(optimizer := torch.optim.LBFGS(model.parameters(), 0.1, max_iter=1))
    for step in range(3):
        optimizer.step(closure=lambda step=step: backward(model, step))
    got = whole(saved(recorder, tmp_path))
    assert got.y.shape == (3, 51) and np.abs(got.y).max() > 0
    recorder.start_run(optimizer := torch.optim.LBFGS(model.parameters(), 0.1, max_iter=4))
    with pytest.raises(L2OError, match=r"LBFGS evaluated its closure twice in a step.*max_iter=1"):
        optimizer.step(lambda: backward(model, 0))


def test_what_never_has_a_gradient_is_left_out_and_what_loses_it_is_dropped(tmp_path, caplog):
    model = network()
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    recorder = Recorder(optimizer, coordinates=EVERYTHING)
    want = []
    for step in range(6):
        backward(model, step)
        if step >= 4:
            model[2].weight.grad = None
        if step == 2:  # nothing to do for the optimizer, and nothing to record
            model.zero_grad()
        else:
            want.append(flat([model[0].weight.grad, model[2].bias.grad]))
        if step == 3:
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
        optimizer.step()
    assert caplog.messages == ["param_2 is dropped from step 4 on: no gradient, or lr 0"]
    got = whole(saved(recorder, tmp_path))
    assert set(got.param_index.tolist()) == {0, 3} and got.g.shape == (5, 24 + 3)
    np.testing.assert_array_equal(got.g, want)
    np.testing.assert_allclose(got.y, -got.g, rtol=1e-10, atol=1e-14)


def test_steps_at_lr_0_are_waited_for_at_the_start_and_end_the_run_later(tmp_path):
    model, rates = network(), [0.0, 0.0, 0.1, 0.2, 0.0, 0.1]
    recorder = Recorder(optimizer := torch.optim.SGD(model.parameters(), 0.1))
    gradients = []
    for step, lr in enumerate(rates):
        optimizer.param_groups[0]["lr"] = lr
        backward(model, step)
        gradients.append(flat(p.grad for p in model.parameters()))
        optimizer.step()
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_array_equal(got.g, gradients[2:4])
    np.testing.assert_allclose(got.y, -got.g, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scalers_gradients_are_unscaled_and_its_skipped_steps_left_out(fused, tmp_path):
    model = network(dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), 0.125, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    recorder = Recorder(optimizer, coordinates=EVERYTHING)
    want = []
    for step in range(5):
        loss = backward(model, step)
        gradients = [p.grad.clone() for p in model.parameters()]
        recorder.loss(loss)
        scaler.scale(loss)  # a scaler starts with its first loss
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.grad = g * scaler.get_scale() * (float("inf") if step == 2 else 1.0)
        scaler.step(optimizer)
        scaler.update()
        want += [flat(gradients)] if step != 2 else []
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_allclose(got.g, want, rtol=1e-6)
    np.testing.assert_allclose(got.y, -got.g, rtol=1e-3, atol=2e-6)


def test_low_precision_is_recorded_in_float32_and_only_so_many_steps(tmp_path):
    model = network(dtype=torch.bfloat16)
    recorder = Recorder(optimizer := torch.optim.SGD(model.parameters(), 0.1), steps=3)
    trained(recorder, model, optimizer, 7)
    got = whole(saved(recorder, tmp_path))
    assert got.g.dtype == got.y.dtype == got.x.dtype == np.float32 and got.g.shape == (3, 51)


def test_places_count_in_the_logical_order_of_a_tensor_whatever_its_strides(tmp_path):
    p = torch.nn.Parameter(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))
    assert not p.is_contiguous()
    recorder = Recorder(optimizer := torch.optim.SGD([p], 1.0), coordinates=50)
    p.grad = torch.arange(120.0).view(2, 3, 4, 5)
    optimizer.step()
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_array_equal(got.g[0], got.flat_index)
    np.testing.assert_array_equal(got.y[0], -got.flat_index)


def test_a_run_ends_before_its_first_value_that_is_not_finite(tmp_path, caplog):
    recorder = None
    for seed, bad in enumerate([None, 3, 0, None]):
        model = network(seed)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        recorder = recorder or Recorder(optimizer)
        if seed:
            recorder.start_run(optimizer)
        for step in range(6):
            recorder.loss(backward(model, step))
            if step == bad:
                model[0].weight.grad[0, 0] = torch.nan
            optimizer.step()
    got = saved(recorder, tmp_path)
    assert caplog.messages == ["a run is left out: gradient, output or loss of its first step is not finite"]
    assert [run.diverged for run in got.runs.values()] == [False, True, False]
    cut = got.runs["000001"]
    assert (len(cut.step), cut.num_steps, cut.outcome) == (3, 6, "diverged at step 4")


def test_when_every_run_diverges_it_says_where_and_writes_nothing(tmp_path):
    model = network()
    recorder = Recorder(optimizer := torch.optim.SGD(model.parameters(), 0.1))
    trained(recorder, model, optimizer, 2)
    recorder.loss(torch.inf)
    optimizer.step()
    with pytest.raises(L2OError, match="every run diverged at step 3; lower the lr"):
        recorder.save(tmp_path / "t.h5")
    assert list(tmp_path.iterdir()) == []


def test_an_optimizer_that_has_taken_steps_is_warned_about(caplog):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    Recorder(optimizer)
    assert caplog.messages == []
    backward(model, 0)
    optimizer.step()
    with caplog.at_level(logging.WARNING):
        Recorder(optimizer)
    assert "has taken steps already" in caplog.messages[0]


def test_saving_goes_on_and_equal_loops_give_equal_bytes(tmp_path):
    files = []
    for name in ("one.h5", "other.h5"):
        model = network()
        recorder = Recorder(optimizer := torch.optim.Adam(model.parameters()), coordinates=10)
        trained(recorder, model, optimizer, 3)
        files.append(recorder.save(tmp_path / name).read_bytes())
    assert files[0] == files[1]
    with pytest.raises(L2OError, match=r"is there already.*overwrite=True"):
        recorder.save(tmp_path / name)
    recorder.loss(1.0)  # between runs nothing listens
    recorder.start_run(optimizer := torch.optim.Adam(network(1).parameters()))
    recorder.save(tmp_path / name, overwrite=True)  # a run without a step is none
    assert list(load_trajectories(tmp_path / name).split.values()) == [
        (f"000000-{part}",) for part in ("train", "valid", "test")
    ]


def sparse() -> None:
    layer = torch.nn.Embedding(8, 2, sparse=True)
    Recorder(optimizer := torch.optim.SGD(layer.parameters(), 0.1))
    layer(torch.tensor([1])).sum().backward()
    optimizer.step()


def complex_numbers() -> None:
    p = torch.nn.Parameter(torch.ones(8, dtype=torch.complex64))
    Recorder(optimizer := torch.optim.SGD([p], 0.1))
    p.grad = torch.ones_like(p)
    optimizer.step()


def few_coordinates() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    recorder = Recorder(optimizer := torch.optim.SGD([p], 0.1))
    p.grad = torch.ones_like(p)
    optimizer.step()
    recorder.save("unwritten.h5")


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.ones(3)], 0.1)


BAD = {
    "a model": (lambda: Recorder(network()), "expected a torch.optim.Optimizer to record, got Sequential"),
    "no coordinates": (lambda: Recorder(sgd(), coordinates=0), "coordinates: expected at least 1, got 0"),
    "no steps": (lambda: Recorder(sgd(), steps=0), "steps: expected at least 1, got 0"),
    "unknown feature": (lambda: Recorder(sgd(), features="g+mum"), "unknown feature 'mum'"),
    "no features": (lambda: Recorder(sgd(), features={}), "features: expected at least one"),
    "theta": (
        lambda: Recorder(sgd(), features={"a": "theta + g"}),
        "'a': expected only g and t in it, got 'th",
    ),
    "no expression": (lambda: Recorder(sgd(), features={"a": "g +"}), "g +"),
    "losses": (lambda: Recorder(sgd()).loss(torch.ones(2)), r"loss: expected one number, got shape (2,)"),
    "no step": (lambda: Recorder(sgd()).save("unwritten.h5"), "expected steps to record, got none"),
    "sparse": (sparse, "param_0: expected a dense gradient, got a sparse one; set sparse=False"),
    "complex": (complex_numbers, "param_0: expected real floating point, got torch.complex64"),
    "too few": (few_coordinates, "expected at least 5 coordinates to deal out, got 2; record 3 runs"),
}


@pytest.mark.parametrize(("use", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_recorded_is_one_clear_line(use, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(L2OError) as error:
        use()
    assert message in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_coordinates_of_large_tensors_are_drawn_without_repeats_too():
    sizes = [2**22 + 1, 30, 2**23]
    chosen = choose_coordinates(sizes, 20_000, 0, 0)
    starts = list(itertools.accumulate(sizes, initial=0))
    counts = [int(((chosen >= low) & (chosen < high)).sum()) for low, high in itertools.pairwise(starts)]
    assert counts == [9_985, 30, 9_985] and len(set(chosen.tolist())) == 20_000
