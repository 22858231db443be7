"""``optimize`` goes on where a run was interrupted: to the same bits as without, in both backends."""

import dataclasses
import importlib
import signal

import numpy as np
import pytest

from interchange.commands import watch
from interchange.commands.optimize import OptimizeConfig
from interchange.commands.watch import Watch
from interchange.files.checkpoint import load_checkpoint
from tests.helpers.commands import metrics

STEPS = 9


@pytest.fixture(params=["torch", "tf"])
def package(request) -> str:
    pytest.importorskip({"torch": "torch", "tf": "tensorflow"}[request.param])
    return request.param


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A run gets a signal after so many steps."""
    plain = Watch.step

    def stop(self: Watch, loss: float) -> bool:
        if self._step + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, loss)

    monkeypatch.setattr(Watch, "step", stop)


CASES = {
    "momentum": ("momentum:lr=0.05,weight_decay=0.1,schedule=cosine", {}),
    "nadamw": ("nadamw", {"average": 0.7, "test_every": 2}),
    "schedule-free": ("schedule-free:l2=0.01", {"accumulate": 2}),
    "muon": ("muon", {"clip_norm": 1.0}),
    "rule": ("rule:rnnprop_tuned", {}),
    "teacher": ("teacher:rp_s", {"test_every": 3}),
    "batch norm": ("adam", {"problem": "mnist-conv", "dataset": "synthetic", "average": 0.5}),
}


@pytest.mark.slow_with(package=("tf",), case=("nadamw", "schedule-free", "muon", "rule"))
@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_where_it_stood(case, package, tmp_path, monkeypatch):
    optimizer, more = CASES[case]
    optimize = importlib.import_module(f"{package}_impl").optimize
    settings = {"problem": "digits-mlp", "batch_size": 8, "steps": STEPS, "quiet": True} | more
    whole, parted = (
        OptimizeConfig(optimizer=optimizer, out=str(tmp_path / name), **settings) for name in ("a", "b")
    )
    (want,) = optimize(whole).runs
    for step in (4, 7):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            result = optimize(parted)
        assert [(len(run.losses), run.outcome) for run in result.runs] == [(step, "interrupted")]
        assert result.exit_code == 143 and (tmp_path / "b" / "unfinished").exists()
    asked = []
    monkeypatch.setattr(Watch, "step", lambda self, loss: asked.append(loss) or False)
    (got,) = optimize(parted).runs
    assert asked == want.losses[7:].tolist()
    np.testing.assert_array_equal(got.losses, want.losses)
    np.testing.assert_array_equal(got.curve, want.curve)
    assert (got.test_loss, got.accuracy) == (want.test_loss, want.accuracy)
    (arrays, _), (others, _) = load_checkpoint(tmp_path / "b"), load_checkpoint(tmp_path / "a")
    assert all(np.array_equal(arrays[name], others[name]) for name in others)
    assert metrics(tmp_path / "b") == metrics(tmp_path / "a")
    assert not any((tmp_path / name / "unfinished").exists() for name in "ab")


def test_a_kill_loses_what_came_since_it_was_kept_last(package, tmp_path, monkeypatch):
    optimize = importlib.import_module(f"{package}_impl").optimize
    fields = {
        "optimizer": "adam:lr=0.01",
        "problem": "digits-mlp",
        "steps": 6,
        "quiet": True,
        "test_every": 2,
    }
    whole, parted = (OptimizeConfig(out=str(tmp_path / name), **fields) for name in ("a", "b"))
    (want,) = optimize(whole).runs
    monkeypatch.setattr(watch, "_STRETCH", 0.0)  # kept at every step
    plain, asked = Watch.step, []

    def killed_at(end: int) -> None:
        def step(self: Watch, loss: float) -> bool:
            asked.append(loss)
            if self._step + 1 == end:
                raise SystemExit("as SIGKILL: nothing more is written")
            return plain(self, loss)

        monkeypatch.setattr(Watch, "step", step)

    killed_at(4)
    with pytest.raises(SystemExit):
        optimize(parted)
    asked.clear()
    killed_at(0)
    (got,) = optimize(parted).runs
    assert asked == want.losses[3:].tolist()
    np.testing.assert_array_equal(got.losses, want.losses)
    np.testing.assert_array_equal(got.curve, want.curve)
    assert metrics(tmp_path / "b") == metrics(tmp_path / "a") and got.seconds > 0.0
    assert not (tmp_path / "b" / "unfinished").exists()


@pytest.mark.parametrize("damage", ["other settings", "a broken file"])
def test_what_it_cannot_go_on_with_begins_anew(damage, package, tmp_path, monkeypatch):
    optimize = importlib.import_module(f"{package}_impl").optimize
    fields = {"optimizer": "sgd:lr=0.1", "problem": "quadratic", "out": str(tmp_path / "b"), "quiet": True}
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        optimize(OptimizeConfig(**fields, steps=STEPS))
    if damage == "a broken file":
        (file,) = (tmp_path / "b").glob("unfinished/checkpoint/*.h5")
        file.write_bytes(file.read_bytes()[:-100])
        config = OptimizeConfig(**fields, steps=STEPS)
        with pytest.warns(UserWarning, match="trying the checkpoint before it"):
            (got,) = optimize(config).runs
    else:
        config = OptimizeConfig(**fields, steps=STEPS + 1, overwrite=True)
        (got,) = optimize(config).runs
    (want,) = optimize(dataclasses.replace(config, out=str(tmp_path / "a"), overwrite=False)).runs
    np.testing.assert_array_equal(got.losses, want.losses)
