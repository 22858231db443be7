"""``train --dry-run`` and ``tune --dry-run`` say what the commands would take, and leave nothing behind."""

import dataclasses

import pytest

from common.errors import L2OError
from common.machine import memory
from interchange.commands import estimate as module
from interchange.commands.estimate import Estimate, estimate
from interchange.meta.config import TrainConfig, TuneConfig
from tests.helpers.commands import call

pytest.importorskip("torch")


@pytest.fixture
def here(monkeypatch, tmp_path):
    """What a child process tries, tried by this one: quicker, though the peak of its memory is its past's."""

    def tried(config: dict, command: str, backend: str) -> dict[str, float]:
        given = {"command": command, "package": f"{backend}_impl", "config": config}
        return module._measured(given, str(tmp_path))

    monkeypatch.setattr(module, "_tried", tried)
    monkeypatch.setattr(module, "_WORTH", 0.05)


def test_a_training_is_tried_for_a_few_steps_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("torch_impl.train --problem quadratic --epochs 7 --validate-every 3 --dry-run") == 0
    sizes, each, all_of_it, most = capsys.readouterr().out.splitlines()
    assert sizes == "quadratic 1,280 parameters" and each.startswith("a step ")
    assert all_of_it.startswith("7 epochs and 4 validations: about ") and "GiB" in most
    assert not list(tmp_path.iterdir())


def test_a_tuning_of_several_problems_takes_what_its_steps_take(here):
    config = TuneConfig(rule="adam", problem="quadratic,lasso", epochs=6, epoch_length=20, unroll=20)
    found = estimate(config, "tune", "torch")
    assert found.parameters == {"quadratic": 1280, "lasso": 1280}
    assert found.growth == 0.0 and found.further == 0  # evolution strategies keep no steps
    assert found.seconds >= 6 * found.epoch > 0.0 and found.peak > 2**26


def test_what_is_more_than_the_machine_has_is_said():
    some = Estimate({"x": 3}, 1.0, 200.0, 9.0, 3, 2, 1.0, 2.0**30, 2.0**20, 14)
    assert (some.seconds, some.bytes) == (1.0 + 600.0 + 18.0, 2.0**30 + 14 * 2.0**20)
    assert "1.01 of" in str(some) and "more than" not in str(some)
    assert "more than this machine has" in str(dataclasses.replace(some, peak=2.0 * memory()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"curriculum": True}, "leave out --curriculum"),
        ({"problem": "mnist-mlp", "data_dir": "/nowhere"}, "mnist"),
        ({"init": "no-such-run"}, "no-such-run"),
    ],
)
def test_what_the_command_refuses_is_refused(changes, words, here):
    with pytest.raises(L2OError, match=words) as caught:
        estimate(TrainConfig(**{"epochs": 2, "problem": "quadratic"} | changes), "train", "torch")
    assert "\n" not in str(caught.value)


def test_a_bound_on_memory_is_looked_at(here):
    fields = {"rule": "nesterov", "problem": "quadratic", "estimator": "forward", "epochs": 2}
    assert estimate(TuneConfig(**fields, memory=0.001), "tune", "torch").growth == 0.0
    with pytest.raises(
        L2OError, match=r"--memory: expected at least 0.000\d+ GiB, .* of 1,280 of 1,280 coord"
    ):
        estimate(TuneConfig(**fields, memory=1e-6), "tune", "torch")
