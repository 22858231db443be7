"""``Recorder`` on loops of one's own in either framework: its numbers, runs, splits, and what it refuses."""

import itertools
import json

import numpy as np
import pytest

from common.data.coordinates import choose_coordinates
from common.errors import L2OError
from common.tables.teachers import TEACHERS
from interchange.files.trajectories import load_trajectories
from interchange.rule.rule import Rule
from tests.helpers.recordings import saved, whole
from tests.helpers.samples import enlarged

RULE = Rule.from_text("-c0 * ema(g, 0.8)", {"c0": 0.3})
OPTIMIZERS = {
    "momentum": lambda impl, p: impl.baseline("momentum", p, 0.05),
    "adamw": lambda impl, p: impl.baseline("adamw", p, 0.01),
    "rule": lambda impl, p: impl.rule(p, RULE, 0.5, weight_decay=0.01),
    "teacher": lambda impl, p: impl.teacher(p, enlarged()),
}
EVERYTHING = 10**6
SHAPES = ((4, 6), (6,), (6, 3), (3,))
SIZE = 51


class Bowl:
    """A parameter per shape of ``SHAPES`` near targets that move from step to step."""

    def __init__(self, impl, seed: int = 0, dtype: str = "float64") -> None:
        generator = np.random.default_rng(seed)
        self.impl = impl
        self.params = impl.parameters([generator.normal(size=shape) for shape in SHAPES], dtype)

    def at(self, step: int) -> tuple[float, list[np.ndarray]]:
        """Loss and gradients."""
        generator = np.random.default_rng(step)
        gaps = [self.impl.value(p) - generator.normal(size=p.shape) for p in self.params]
        return float(sum((gap**2).sum() for gap in gaps)) / SIZE, [2.0 * gap / SIZE for gap in gaps]

    def train(self, recorder, optimizer, steps: int) -> None:
        for step in range(steps):
            loss, gradients = self.at(step)
            recorder.loss(loss)
            self.impl.feed(optimizer, self.params, gradients)


def flat(arrays) -> np.ndarray:
    return np.concatenate([np.ravel(a) for a in arrays])


def runs(impl, count: int, **settings):
    """One after the other, each with a fresh optimizer: the recorder, the bowl and the optimizer."""
    recorder = None
    for seed in range(count):
        bowl = Bowl(impl, seed)
        optimizer = impl.sgd(bowl.params, 0.1)
        if recorder is None:
            recorder = impl.Recorder(optimizer, **settings)
        else:
            recorder.start_run(optimizer)
        yield recorder, bowl, optimizer


def assert_y_is_minus_g(run) -> None:
    np.testing.assert_allclose(run.y, -run.g, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_step_is_recorded_as_it_was_and_the_training_is_left_as_it_is(impl, make, tmp_path):
    bowl, alone = Bowl(impl), Bowl(impl)
    optimizer, other = make(impl, bowl.params), make(impl, alone.params)
    recorder = impl.Recorder(optimizer, coordinates=EVERYTHING)
    gs, ys, losses = [], [], []
    for step in range(8):
        lr = 0.5 ** (1 + step // 3)
        impl.set_rate(other, lr)
        loss, gradients = alone.at(step)
        before = flat(map(impl.value, alone.params))
        impl.feed(other, alone.params, gradients)
        gs.append(flat(gradients))
        losses.append(loss)
        ys.append((flat(map(impl.value, alone.params)) - before) / lr)
        impl.set_rate(optimizer, lr)
        loss, gradients = bowl.at(step)
        recorder.loss(loss)
        impl.feed(optimizer, bowl.params, gradients)
    for p, q in zip(bowl.params, alone.params, strict=True):
        np.testing.assert_array_equal(impl.value(p), impl.value(q))
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_array_equal(got.g, gs)
    np.testing.assert_allclose(got.y, ys, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(got.loss, losses)
    assert (got.source_kind, got.outcome, got.num_steps, got.scale) == ("user", "ok", 8, 1.0)
    assert json.loads(got.source_json)["name"] == type(optimizer).__name__ and got.params_shapes == SHAPES


@pytest.mark.parametrize(
    ("features", "expressions"),
    [
        ("mt+g", {"m_tilde": TEACHERS["rnnprop"].expressions()["m_tilde"], "g": "g"}),
        (given := {"g": "g", "slow": "ema_hat(g, 0.9) / (1 + t)"}, given),
    ],
    ids=["of the table", "expressions"],
)
def test_features_are_their_expressions_over_the_recorded_gradient(impl, features, expressions, tmp_path):
    ((recorder, bowl, optimizer),) = runs(impl, 1, features=features, problem="mine")
    bowl.train(recorder, optimizer, 12)
    file = saved(recorder, tmp_path)
    assert file.features == expressions and list(file.features) == list(expressions)
    assert file.config["problem"] == "mine"
    got = whole(file)
    assert got.x.shape == (12, SIZE, 2)
    for k, text in enumerate(expressions.values()):
        want = Rule.from_text(text).evaluate({"g": got.g})
        np.testing.assert_allclose(got.x[:, :, k], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2])
def test_of_one_or_two_runs_the_coordinates_are_dealt_out_alike_in_every_tensor(impl, count, tmp_path):
    for recorder, bowl, optimizer in runs(impl, count, coordinates=43):
        bowl.train(recorder, optimizer, 4)
    got = saved(recorder, tmp_path)
    assert got.config["held_out"] == "coordinates" and len(got.runs) == 3 * count
    for number in range(count):
        names = [f"{number:06d}-{part}" for part in ("train", "valid", "test")]
        assert [got.split[part][number] for part in ("train", "valid", "test")] == names
        parts = [got.runs[name] for name in names]
        seen = [set(zip(p.param_index.tolist(), p.flat_index.tolist(), strict=True)) for p in parts]
        assert [len(part) for part in seen] == [27, 8, 8] and len(set.union(*seen)) == 43
        for part in parts[1:]:
            assert set(part.param_index.tolist()) >= {0, 2}


def test_three_runs_are_held_out_as_runs_each_with_its_own_draw_and_its_first_steps(impl, tmp_path):
    for number, (recorder, bowl, optimizer) in enumerate(runs(impl, 3, coordinates=20, steps=4, seed=3)):
        bowl.train(recorder, optimizer, 3 + number)
    got = saved(recorder, tmp_path)
    assert got.split == {"train": ("000000",), "valid": ("000001",), "test": ("000002",)}
    assert [len(run.step) for run in got.runs.values()] == [3, 4, 4] and got.config["held_out"] == "runs"
    starts, drawn = np.cumsum([0, 24, 6, 18]), []
    for number, run in enumerate(got.runs.values()):
        drawn.append((starts[run.param_index] + run.flat_index).tolist())
        assert drawn[-1] == choose_coordinates([24, 6, 18, 3], 20, 3, number).tolist()
    assert drawn[0] != drawn[1] != drawn[2]


@pytest.mark.parametrize(("name", "chosen"), [("sometimes", [1, 1, 1, 3, 3]), ("never", [])])
def test_a_missing_loss_is_the_last_or_zero(impl, name, chosen, tmp_path):
    ((recorder, bowl, optimizer),) = runs(impl, 1)
    losses = []
    for step in range(5):
        loss, gradients = bowl.at(step)
        losses.append(loss)
        if name == "sometimes" and step % 2:
            recorder.loss(loss)
        impl.feed(optimizer, bowl.params, gradients)
    got = whole(saved(recorder, tmp_path))
    assert got.loss.tolist() == ([losses[k] for k in chosen] or [0.0] * 5)
    assert ("no loss was given, 0 stands for it" in got.outcome) == (name == "never")


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_what_never_has_a_gradient_is_left_out_and_what_loses_it_too(impl, tmp_path, caplog):
    ((recorder, bowl, optimizer),) = runs(impl, 1, coordinates=EVERYTHING)
    want = []
    for step in range(6):
        _, (a, _, c, d) = bowl.at(step)
        impl.feed(optimizer, bowl.params, [a, None, c if step < 4 else None, d])
        want.append(flat([a, d]))
    got = whole(saved(recorder, tmp_path))
    told = {
        "torch": "param_2 is dropped from step 5 on: no gradient, or lr 0",
        "tf": f"{got.params_names[2]} is left out: it lost its gradient",
    }
    assert caplog.messages == [told[impl.NAME]]
    assert set(got.param_index.tolist()) == {0, 3} and got.g.shape == (6, 24 + 3)
    np.testing.assert_array_equal(got.g, want)
    assert_y_is_minus_g(got)


def test_steps_at_lr_0_are_waited_for_at_the_start_and_end_the_run_later(impl, tmp_path):
    ((recorder, bowl, optimizer),) = runs(impl, 1)
    seen = []
    for step, lr in enumerate([0.0, 0.0, 0.1, 0.2, 0.0, 0.1]):
        impl.set_rate(optimizer, lr)
        seen.append(bowl.at(step)[1])
        impl.feed(optimizer, bowl.params, seen[-1])
    got = whole(saved(recorder, tmp_path))
    np.testing.assert_array_equal(got.g, [flat(row) for row in seen[2:4]])
    assert_y_is_minus_g(got)


def test_low_precision_is_recorded_in_float32_and_only_so_many_steps(impl, tmp_path):
    bowl = Bowl(impl, dtype="bfloat16")
    recorder = impl.Recorder(optimizer := impl.sgd(bowl.params, 0.1), steps=3)
    bowl.train(recorder, optimizer, 7)
    got = whole(saved(recorder, tmp_path))
    assert got.g.dtype == got.y.dtype == got.x.dtype == np.float32 and got.g.shape == (3, SIZE)


def test_a_run_ends_before_its_first_value_that_is_not_finite(impl, tmp_path, caplog):
    for bad, (recorder, bowl, optimizer) in zip([None, 3, 0, None], runs(impl, 4), strict=True):
        for step in range(6):
            loss, gradients = bowl.at(step)
            recorder.loss(loss)
            gradients[0][0, 0] *= np.nan if step == bad else 1.0
            impl.feed(optimizer, bowl.params, gradients)
    got = saved(recorder, tmp_path)
    assert caplog.messages == ["a run is left out: gradient, output or loss of its first step is not finite"]
    assert [run.diverged for run in got.runs.values()] == [False, True, False]
    cut = got.runs["000001"]
    assert (len(cut.step), cut.num_steps, cut.outcome) == (3, 6, "diverged at step 4")


def test_when_every_run_diverges_it_says_where_and_writes_nothing(impl, tmp_path):
    ((recorder, bowl, optimizer),) = runs(impl, 1)
    bowl.train(recorder, optimizer, 2)
    recorder.loss(np.inf)
    impl.feed(optimizer, bowl.params, bowl.at(2)[1])
    with pytest.raises(L2OError, match="every run diverged at step 3; lower the lr"):
        recorder.save(tmp_path / "t.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_coordinate_left_alone_has_y_0_and_the_run_goes_on(impl, tmp_path):
    """Its gradient is finite here, but not the square of it; of one that is nan the run ends."""
    params = impl.parameters([np.ones(5)], "float32")
    recorder = impl.Recorder(adam := impl.rule(params, Rule.named("adam"), 0.1))
    for step in range(6):
        impl.feed(adam, params, [np.array([1e30 if step == 3 else 1.0, 1.0, 1.0, 1.0, 1.0])])
    got = whole(saved(recorder, tmp_path))
    assert got.outcome.startswith("ok") and len(got.step) == 6
    assert got.g[3, 0] == np.float32(1e30) and (got.y[:, 0] == 0.0).tolist() == [k == 3 for k in range(6)]
    assert (got.y[:, 1:] < 0.0).all()


def test_an_optimizer_that_has_taken_steps_is_warned_about(impl, caplog):
    bowl = Bowl(impl)
    optimizer = impl.baseline("adam", bowl.params, 0.1)
    impl.feed(optimizer, bowl.params, bowl.at(0)[1])
    assert caplog.messages == []
    impl.Recorder(optimizer)
    assert "has taken steps already" in caplog.messages[0]


def test_saving_goes_on_and_equal_loops_give_equal_bytes(impl, tmp_path):
    files = []
    for name in ("one.h5", "other.h5"):
        for recorder, bowl, optimizer in runs(impl, 1, coordinates=10):
            bowl.train(recorder, optimizer, 3)
        files.append(recorder.save(tmp_path / name).read_bytes())
    assert files[0] == files[1]
    with pytest.raises(L2OError, match=r"is there already.*overwrite=True"):
        recorder.save(tmp_path / name)
    recorder.loss(1.0)  # between runs nothing listens
    recorder.start_run(impl.sgd(Bowl(impl).params, 0.1))
    recorder.save(tmp_path / name, overwrite=True)  # a run without a step is none
    assert list(load_trajectories(tmp_path / name).split.values()) == [
        (f"000000-{part}",) for part in ("train", "valid", "test")
    ]


def too_few(impl) -> None:
    params = impl.parameters([np.ones(2)])
    recorder = impl.Recorder(optimizer := impl.sgd(params, 0.1))
    impl.feed(optimizer, params, [np.ones(2)])
    recorder.save("unwritten.h5")


def recorder_of(impl, **settings):
    return impl.Recorder(impl.sgd(impl.parameters([np.ones(3)]), 0.1), **settings)


BAD = {
    "a model": (lambda impl: impl.Recorder(Bowl(impl)), "optimizer to record, got Bowl"),
    "no coordinates": (
        lambda impl: recorder_of(impl, coordinates=0),
        "coordinates: expected at least 1, got 0",
    ),
    "no steps": (lambda impl: recorder_of(impl, steps=0), "steps: expected at least 1, got 0"),
    "unknown feature": (lambda impl: recorder_of(impl, features="g+mum"), "unknown feature 'mum'"),
    "no features": (lambda impl: recorder_of(impl, features={}), "features: expected at least one"),
    "theta": (
        lambda impl: recorder_of(impl, features={"a": "theta + g"}),
        "'a': expected only g and t in it, got 'th",
    ),
    "no expression": (lambda impl: recorder_of(impl, features={"a": "g +"}), "g +"),
    "losses": (
        lambda impl: recorder_of(impl).loss(
            impl.module("tensors").to_tensor(np.ones(2), impl.DTYPES["float32"])
        ),
        "loss: expected one number, got shape (2,)",
    ),
    "no step": (
        lambda impl: recorder_of(impl).save("unwritten.h5"),
        "expected steps to record, got none",
    ),
    "too few": (too_few, "expected at least 5 coordinates to deal out, got 2; record 3 runs"),
}


@pytest.mark.parametrize(("use", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_recorded_is_one_clear_line(impl, use, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(L2OError) as error:
        use(impl)
    assert message.lower() in str(error.value).lower() and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_coordinates_of_large_tensors_are_drawn_without_repeats_too():
    sizes = [2**22 + 1, 30, 2**23]
    chosen = choose_coordinates(sizes, 20_000, 0, 0)
    starts = list(itertools.accumulate(sizes, initial=0))
    counts = [int(((chosen >= low) & (chosen < high)).sum()) for low, high in itertools.pairwise(starts)]
    assert counts == [9_985, 30, 9_985] and len(set(chosen.tolist())) == 20_000
