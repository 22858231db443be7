"""``record``, ``select``, ``tune`` and ``evaluate`` of the torch backend, as functions and as commands."""

import dataclasses
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from common import reference
from common.metrics import DIVERGED
from common.rng import derived_seed
from common.tables.baselines import BASELINES, parse_spec
from common.tables.problems import PROBLEMS, Instance
from common.tables.teachers import TEACHERS
from interchange.commands.record import RecordConfig
from interchange.commands.select import SelectConfig
from interchange.evaluation.config import EvaluateConfig
from interchange.files.results import load_evaluation
from interchange.files.trajectories import Run, load_trajectories
from interchange.files.weights import load_weights
from interchange.meta.config import TuneConfig
from interchange.rule.front import read_front, write_front
from interchange.rule.rule import Rule
from tests.helpers.commands import call, csv_rows, descended, rule_spec, saved_rule

pytest.importorskip("torch")

import torch

from torch_impl.evaluate import evaluate
from torch_impl.problems.tasks import ProblemTask
from torch_impl.record import record
from torch_impl.rollout import rollout, task
from torch_impl.select import select
from torch_impl.sources import load
from torch_impl.tune import tune

QUADRATIC = PROBLEMS["quadratic"]
COMMANDS = ("record", "select", "tune", "evaluate")

RULE = Rule.from_text(
    "c0 * tanh(c1 * g) + c2 * ema(m, c3)",
    {"c0": -0.6, "c1": 4.0, "c2": -5.0, "c3": 0.8},
    {"m": "ema(g, 0.9)"},
    scale=0.05,
)


@pytest.fixture(scope="module")
def rule(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rule") / "rule.json"
    RULE.save(path)
    return path


def recorded(source: str, out: Path, **settings) -> list[Run]:
    fields = {"problem": "quadratic", "steps": 8, "runs": 3, "samples": 10**6, "dtype": "float64"}
    path = record(RecordConfig(source=source, out=str(out), quiet=True, **fields | settings))
    return list(load_trajectories(path).runs.values())


SOURCES = {
    "a run": ("{trained}", "teacher", 1.0),
    "a teacher with lr": ("teacher:{trained},lr=0.25", "teacher", 0.25),
    "a rule": ("rule:{rule}", "rule", 1.0),
    "a rule with lr": ("rule:{rule},lr=2", "rule", 2.0),
    "adam": ("adam:lr=0.01", "baseline", 0.01),
    "nesterov at its usual lr": ("nesterov", "baseline", BASELINES["nesterov"].lr),
}


@pytest.mark.parametrize(("text", "kind", "lr"), SOURCES.values(), ids=SOURCES)
def test_a_recording_replays_outputs_move_theta_to_the_next_recorded_gradient(
    text, kind, lr, trained, rule, tmp_path
):
    """Every coordinate is recorded, so the NumPy oracle can follow theta from the outputs alone."""

    def follow(theta, g, step):
        np.testing.assert_allclose(got.g[step], g, rtol=1e-8, atol=1e-12)
        return theta + lr * got.scale * got.y[step]

    for got in recorded(text.format(trained=trained, rule=rule), tmp_path / "t.h5"):
        assert got.source_kind == kind and not got.diverged and got.outcome == "ok"
        losses, _ = descended(Instance(QUADRATIC, got.seed, "meta_train"), 8, follow)
        np.testing.assert_allclose(got.loss, losses, rtol=1e-10)


def test_a_teachers_features_and_outputs_are_the_oracles(trained, tmp_path):
    weights, row = load_weights(trained), TEACHERS["rp_s"]
    for got in recorded(str(trained), tmp_path / "t.h5"):
        features = reference.Features(row.beta1, row.beta2, row.eps, row.p)
        cells = reference.zero_cells(row, got.g.shape[1])
        assert got.scale == row.scale and got.source_sha256 == weights.sha256
        for step, g in enumerate(got.g):
            values = features.step(g)
            x = np.stack([values[name] for name in row.inputs], axis=1)
            y, cells = reference.teacher_step(row, weights.weights, x, cells)
            np.testing.assert_allclose(got.x[step], x, rtol=1e-7, atol=1e-12)
            np.testing.assert_allclose(got.y[step], y, rtol=1e-7, atol=1e-12)


def test_a_rules_features_and_outputs_are_its_own_over_the_recorded_gradient(rule, tmp_path):
    path = tmp_path / "t.h5"
    for got in recorded(f"rule:{rule}", path):
        assert got.scale == RULE.scale and got.source_sha256 == RULE.sha256
        np.testing.assert_allclose(got.scale * got.y, RULE.evaluate({"g": got.g}), rtol=1e-10, atol=1e-15)
    assert load_trajectories(path).features == {"g": "g", "m": "ema(g, 0.9)"}
    averages = Rule.from_text("ema(g, 0.9)").evaluate({"g": got.g})
    np.testing.assert_array_equal(got.x[:, :, 0], got.g)
    np.testing.assert_allclose(got.x[:, :, 1], averages, rtol=1e-10, atol=1e-15)


def test_a_recording_names_its_problem_splits_by_run_and_forgets_places(trained, tmp_path):
    small = {"steps": 6, "runs": 10, "samples": 1_200, "out": str(tmp_path / "t.h5"), "quiet": True}
    got = load_trajectories(record(RecordConfig(source=str(trained), **small)))
    names = [f"{k:06d}" for k in range(10)]
    assert list(got.runs) == names
    assert got.split == {"train": (*names[:6],), "valid": (*names[6:8],), "test": (*names[8:],)}
    assert list(got.features) == list(TEACHERS["rp_s"].inputs)
    assert len({one.seed for one in got.runs.values()}) == 10
    for one in got.runs.values():
        assert (one.problem, one.params_names, one.params_shapes) == ("quadratic", ("x",), ((128, 10),))
        assert one.x.shape == (6, 20, 2) and one.x.dtype == np.float32
        np.testing.assert_array_equal(one.step, np.arange(1, 7))
    assert str(tmp_path) not in json.dumps(got.config) and str(trained) not in json.dumps(got.config)
    assert got.config["problem"] == "quadratic"


def test_coordinates_come_in_equal_shares_from_every_tensor(rule, tmp_path):
    sizes = [1920, 30, 600, 20, 200, 10]
    runs = recorded(f"rule:{rule}", tmp_path / "t.h5", problem="digits-mlp", steps=2, samples=2 * 3 * 122)
    assert [math.prod(shape) for shape in runs[0].params_shapes] == sizes
    for one in runs:
        assert np.bincount(one.param_index).tolist() == [23, 23, 23, 20, 23, 10]
        assert len(set(zip(one.param_index.tolist(), one.flat_index.tolist(), strict=True))) == 122
    assert not np.array_equal(runs[0].flat_index, runs[1].flat_index)


def test_recorded_gradients_belong_to_the_coordinates_they_are_filed_under(rule, tmp_path):
    (one, *_) = recorded(f"rule:{rule}", tmp_path / "t.h5", problem="digits-mlp", steps=2, samples=2 * 3 * 60)
    instance = Instance(PROBLEMS["digits-mlp"], one.seed, "meta_train")
    parameters = [torch.tensor(p).requires_grad_() for p in instance.initial_parameters().values()]
    images, labels = instance.data()
    rows = instance.batch_indices(0)
    x = torch.tensor(images[rows].reshape(len(rows), -1), dtype=torch.float64)
    for k in (0, 2, 4):
        x = x @ parameters[k] + parameters[k + 1]
        x = torch.relu(x) if k < 4 else x
    torch.nn.functional.cross_entropy(x, torch.tensor(labels[rows])).backward()
    places = zip(one.param_index, one.flat_index, strict=True)
    want = [parameters[i].grad.ravel()[j].item() for i, j in places]
    np.testing.assert_allclose(one.g[0], want, rtol=1e-6, atol=1e-9)
    assert np.count_nonzero(one.g[0]) > 30


def test_the_same_seed_records_the_same_bytes_and_another_one_others(rule, tmp_path):
    files = [tmp_path / f"{k}.h5" for k in range(3)]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        recorded(f"rule:{rule}", file, seed=seed, samples=1_000)
    one, same, other = (file.read_bytes() for file in files)
    assert one == same and one != other


def test_a_run_whose_output_is_not_finite_is_kept_as_diverged_up_to_there(tmp_path):
    """With a loss still finite: from step 6 on, in runs whose first gradients pass a limit."""

    def runs(limit: float) -> list[Run]:
        text = "c0 * g + 0 * div(1, greater(c1, abs(lag(g, 5))))"
        return recorded(rule_spec(tmp_path, text, c0=-1.0, c1=limit), tmp_path / f"{limit}.h5")

    largest = [np.abs(one.g[0]).max() for one in runs(1e9)]
    limit = (max(largest) + sorted(largest)[1]) / 2
    for one, gradient in zip(runs(limit), largest, strict=True):
        assert one.diverged == (gradient > limit)
        assert len(one.step) == (5 if one.diverged else 8) and one.num_steps == 8
        assert one.outcome == ("diverged at step 6" if one.diverged else "ok")


CANDIDATES = {"good": -2.0, "slow": -0.02, "wrong way": 50.0, "fair": -0.5}


@pytest.fixture
def front(tmp_path) -> Path:
    rules = [
        Rule.from_text("c0 * g", {"c0": c0}, name=name, provenance={"r2": {"valid": 0.1 * k}})
        for k, (name, c0) in enumerate(CANDIDATES.items())
    ]
    write_front(tmp_path / "front", rules)
    return tmp_path / "front"


SELECT = {"problem": "quadratic", "steps": 40, "tasks": 2, "quiet": True}


def test_select_orders_a_front_by_loss_with_what_diverges_last(front):
    ranked = select(SelectConfig(front=str(front), **SELECT))
    assert [one.name for one in ranked] == ["good", "fair", "slow", "wrong way"]
    losses = [one.provenance["loss"]["valid"] for one in ranked]
    assert losses[:3] == sorted(losses[:3]) and losses[2] < 20.0 and losses[3] is None
    assert Rule.load(front / "best.json") == ranked[0]
    kept = read_front(front)
    assert [one.name for one in kept] == list(CANDIDATES)
    for k, (row, one) in enumerate(zip(csv_rows(front / "front.csv"), kept, strict=True)):
        assert (float(row["loss"]) if row["loss"] else None) == one.provenance["loss"]["valid"]
        assert float(row["r2"]) == one.provenance["r2"]["valid"] == 0.1 * k
        assert (one.provenance["loss"]["problem"], one.provenance["loss"]["steps"]) == ("quadratic", 40)


def test_selection_losses_are_the_native_optimizers_on_half_a(front):
    (best, *_) = select(SelectConfig(front=str(front), **SELECT | {"dtype": "float64"}))
    figures = []
    for number in range(2):
        instance = Instance(QUADRATIC, derived_seed(0, "validation", number), "meta_train")
        losses, _ = descended(instance, 40, lambda theta, g, _: theta - 2.0 * g)
        figures.append(np.mean(losses[20:]))
    assert best.provenance["loss"]["valid"] == pytest.approx(np.mean(figures), rel=1e-9)


TUNE = {"problem": "quadratic", "epoch_length": 40, "unroll": 10, "validation_tasks": 2, "quiet": True}
TIMID = {"c0": -0.03, "c1": 4.0, "c2": -0.2, "c3": 0.8}


def tuned_from(folder: Path, rule: Rule, **fields) -> Rule:
    rule.save(folder / "rule.json")
    return tune(TuneConfig(rule=str(folder / "rule.json"), **TUNE | fields))


def test_tuning_a_bad_step_size_lowers_the_loss_and_changes_constants_only(tmp_path):
    """By the other estimators: test_tune_kinds.py."""
    known = {"engine": "none", "r2": {"test": 0.9}, "r2_update": {"test": 0.9}, "loss": {}}
    timid = dataclasses.replace(RULE, provenance=known)
    timid = timid.with_constants(TIMID)
    tuned = tuned_from(tmp_path, timid, estimator="first", epochs=10, lr=0.3, validate_every=2)
    assert Rule.load(tmp_path / "tuned.json") == tuned
    assert Rule.load(tmp_path / "rule.json") == timid
    fields = ("expression", "features", "scale", "complexity")
    assert all(getattr(tuned, name) == getattr(timid, name) for name in fields)
    assert tuned.constants.keys() == timid.constants.keys() and tuned.constants != timid.constants
    assert all(0.0 < tuned.constants[name] < 1.0 for name in tuned.decay_constants)
    record = tuned.provenance["tuned"]
    assert tuned.provenance.keys() == {"engine", "tuned"}  # R2 and loss were of other constants
    assert record["from_sha256"] == timid.sha256
    assert (record["problem"], record["epochs"], record["epoch_length"]) == ("quadratic", 10, 40)
    assert len(record["validation"]["by_epoch"]) == 5
    assert record["validation"]["best"] == min(record["validation"]["by_epoch"])
    assert record["validation"]["best"] < 0.8 * record["validation"]["before"]
    settings = EvaluateConfig(problem="quadratic")
    for number in range(3):  # optimizees that tuning never saw
        before, after = (
            rollout(load(parse_spec(f"rule:{tmp_path / name}")), 1.0, task(settings, "test", number), 40)
            for name in ("rule.json", "tuned.json")
        )
        assert after.losses[-10:].mean() < 0.8 * before.losses[-10:].mean()


def test_tuning_that_gains_nothing_keeps_the_constants(tmp_path):
    tuned = tuned_from(tmp_path, RULE, epochs=2, lr=100.0, validate_every=1)
    assert tuned.constants == pytest.approx(RULE.constants, rel=1e-12)
    scores = tuned.provenance["tuned"]["validation"]
    assert scores["best"] == scores["before"]


def test_decays_stay_between_0_and_1_however_hard_they_are_tuned(tmp_path):
    constants = {"c0": -1.0, "c1": 0.98, "c2": -1.0, "c3": 0.02}
    rule = Rule.from_text("c0 * ema(g, c1) + c2 * ema(g, c3)", constants)
    tuned = tuned_from(tmp_path, rule, epochs=4, lr=3.0, validate_every=1)
    assert all(0.0 < tuned.constants[name] < 1.0 for name in ("c1", "c3"))


def test_what_keeps_a_denominator_above_0_stays_positive_and_moves(tmp_path):
    rule = Rule.from_text("c0 * g / (abs(g) + eps)", {"c0": -0.01, "eps": 1e-3})
    tuned = tuned_from(tmp_path, rule, epochs=4, lr=3.0, validate_every=1)
    assert 0.0 < tuned.constants["eps"] != 1e-3


def test_a_rule_that_diverges_can_be_tuned_and_its_infinite_loss_is_on_record(tmp_path):
    """Within two steps it does not overflow, which is enough for a gradient; within a validation it does."""
    fields = {"epoch_length": 80, "unroll": 2, "validation_tasks": 1, "estimator": "first", "epochs": 4}
    # So slow that the constant comes up to where the rule holds without running past it.
    fields |= {"lr": 0.02, "lr_decay": 1.0, "validate_every": 1}
    tuned = tuned_from(tmp_path, Rule.from_text("c0 * g", {"c0": -4.0}), **fields)
    scores = tuned.provenance["tuned"]["validation"]
    assert scores["before"] == 1e308 and scores["best"] < 5.0
    assert -4.0 < tuned.constants["c0"] < 0.0


def test_a_rule_that_diverges_throughout_is_not_called_tuned(tmp_path, refused):
    tiny = "--epochs 2 --epoch-length 40 --validation-tasks 1 --problem quadratic --lr 1e-6 --quiet"
    path = saved_rule(tmp_path, c0=5000.0)
    assert "diverged in every validation" in refused(f"torch_impl.tune {path} {tiny}")
    assert not (tmp_path / "tuned.json").exists()


EVALUATE = {
    "problem": "quadratic", "steps": (10, 20), "seeds": 2, "validation_seeds": 1, "trials": 3,
    "dtype": "float64", "quiet": True,
}  # fmt: skip
ONCE = EVALUATE | {"trials": 0, "seeds": 1}

FIXED, RUINOUS = "adam:lr=0.01", "sgd:lr=1e6"


@pytest.fixture(scope="module")
def evaluated(trained, rule, tmp_path_factory) -> tuple[EvaluateConfig, list]:
    """One evaluation of baselines, a fixed learning rate, a ruinous one, a teacher and a rule."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    optimizers = ("sgd", "nesterov", FIXED, RUINOUS, f"teacher:{trained}", f"rule:{rule}")
    config = EvaluateConfig(optimizers=optimizers, out=str(out), **EVALUATE | {"steps": (10, 40)})
    return config, evaluate(config)


def of(rows: list, optimizer: str) -> list:
    return [row for row in rows if row.optimizer == optimizer]


def test_an_evaluation_has_every_optimizer_horizon_and_seed_and_is_written(evaluated):
    config, rows = evaluated
    found = [(row.optimizer, row.horizon, row.seed) for row in rows]
    assert found == list(itertools.product(config.optimizers, (10, 40), (0, 1)))
    assert all(len(row.losses) == row.horizon for row in rows if row.optimizer != RUINOUS)
    kept = load_evaluation(Path(config.out) / "evaluation.h5")
    for one, other in zip(kept.rows, rows, strict=True):
        np.testing.assert_array_equal(one.losses, other.losses)
        assert (one.optimizer, one.settings, one.trials) == (other.optimizer, other.settings, other.trials)
    assert kept.config["optimizers"] == list(config.optimizers)


def test_all_tuned_optimizers_had_the_same_number_of_trials_and_fixed_ones_none(evaluated, trained, rule):
    _, rows = evaluated
    tuned = {row.optimizer: row.trials for row in rows if row.optimizer not in (FIXED, RUINOUS)}
    assert len(set(tuned.values())) == 1 and min(tuned.values()) >= 3
    assert set(tuned) == {"sgd", "nesterov", f"teacher:{trained}", f"rule:{rule}"}
    assert {(row.trials, row.settings["lr"]) for row in of(rows, FIXED)} == {(0, 0.01)}


def test_a_diverged_optimizer_is_counted_and_not_lost(evaluated):
    config, rows = evaluated
    lost = of(rows, RUINOUS)
    assert [row.outcome for row in lost if row.horizon == 40] == [DIVERGED] * 2
    assert all(len(row.losses) < 40 and np.isfinite(row.losses).all() for row in lost)
    table = csv_rows(Path(config.out) / "summary.csv")
    (row,) = [r for r in table if r["optimizer"] == RUINOUS and r["horizon"] == "40"]
    assert (row["seeds"], row["diverged"], float(row["loss_mean"])) == ("2", "2", math.inf)


FLOATS = {"sgd": 0, "nesterov": 1, FIXED: 2, "teacher": 16, "rule": 2}


@pytest.mark.parametrize(("start", "floats"), FLOATS.items())
def test_state_is_counted_in_floats_per_parameter(start, floats, evaluated):
    """rp_s: h and c of 7 units, two moving averages; the rule: m and its average."""
    found = [row for row in evaluated[1] if row.optimizer.startswith(start)]
    assert found and all(row.floats_per_parameter == floats and row.ms_per_step > 0.0 for row in found)


def test_two_processes_give_the_losses_of_one(evaluated, tmp_path):
    config, rows = evaluated
    again = evaluate(dataclasses.replace(config, jobs=2, out=str(tmp_path)))
    for one, other in zip(rows, again, strict=True):
        np.testing.assert_array_equal(one.losses, other.losses)
        assert (one.optimizer, one.settings) == (other.optimizer, other.settings)


TINY = {
    "record": "sgd --runs 3 --steps 3",
    "select": "{front} --steps 3",
    "tune": "{rule} --epochs 1 --epoch-length 3 --validate-every 1",
    "evaluate": "--optimizers sgd --seeds 1 --steps 3",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_only_the_comparison_sees_half_b(command, front, rule, tmp_path, monkeypatch):
    seen, made = set(), ProblemTask.__init__

    def spy(self, instance, *rest):
        seen.add(instance.split)
        made(self, instance, *rest)

    monkeypatch.setattr(ProblemTask, "__init__", spy)
    words = TINY[command].format(front=front, rule=rule)
    assert call(f"torch_impl.{command} {words} --problem quadratic --out {tmp_path / 'out'} --quiet") == 0
    assert seen == {"evaluation" if command == "evaluate" else "meta_train"}


def test_a_rule_file_that_changed_is_read_anew(tmp_path):
    found = []
    for c0 in (-0.5, -2.0):
        optimizers = (rule_spec(tmp_path, c0=c0),)
        config = EvaluateConfig(optimizers=optimizers, out=str(tmp_path / "o"), overwrite=True, **ONCE)
        found.append(evaluate(config)[0].losses[-1])
    assert found[1] < 0.8 * found[0]


def test_a_rule_whose_updates_are_never_finite_is_counted_as_diverged(tmp_path):
    optimizers = (rule_spec(tmp_path, "-g / (g - g)"), FIXED)
    config = EvaluateConfig(optimizers=optimizers, out=str(tmp_path / "o"), **ONCE | {"steps": (30,)})
    broken, fine = evaluate(config)
    assert (broken.outcome, fine.outcome) == (DIVERGED, "ok")
    assert broken.ms_per_step > 0.0 and fine.ms_per_step > 0.0


def test_a_rule_that_reads_theta_can_be_compared(tmp_path):
    """It cannot be recorded, which test_bad_input.py shows."""
    optimizers = (rule_spec(tmp_path, "-g - 0.1 * theta"),)
    assert evaluate(EvaluateConfig(optimizers=optimizers, out=str(tmp_path / "o"), **ONCE))


@pytest.mark.parametrize(
    ("command", "words", "file"),
    [
        ("evaluate", "--optimizers sgd --out {done}", "{done}/evaluation.h5"),
        ("record", "sgd --out {here}/t.h5", "{here}/t.h5"),
        ("tune", "{rule} --out {here}/tuned.json", "{here}/tuned.json"),
    ],
    ids=["evaluate", "record", "tune"],
)
def test_existing_output_is_replaced_only_on_demand(command, words, file, evaluated, rule, tmp_path, refused):
    places = {"done": evaluated[0].out, "here": tmp_path, "rule": rule}
    path = Path(file.format(**places))
    path.touch()
    before = path.read_bytes()
    line = f"torch_impl.{command} {words.format(**places)} --problem quadratic --quiet"
    assert "--overwrite" in refused(line)
    assert path.read_bytes() == before


def test_the_commands_say_what_they_wrote_and_what_comes_next(front, rule, tmp_path, capsys):
    trajectories, tuned, folder, rules = (
        tmp_path / name for name in ("t.h5", "tuned.json", "evaluation", "rules")
    )

    def printed(line: str) -> list[str]:
        assert call(line) == 0
        out, err = capsys.readouterr()
        assert "WARNING" not in err
        return [one for one in out.splitlines() if one]

    on = "--problem quadratic"
    assert printed(f"torch_impl.record sgd:lr=1 --steps 5 --runs 5 {on} --out {trajectories}") == [
        f"trajectories: {trajectories}"
    ]
    found = printed(f"interchange.distill {trajectories} --engine linear --out {rules}")
    assert re.match(r"\*? +\d+ nodes  R2 valid [01]\.\d{4}  test [01]\.\d{4}$", found[0])
    assert found[-2] == f"rule: {rules}/best.json"  # known to be exact: there is nothing to choose
    assert found[-1] == f"next: python -m interchange.rule explain {rules}/best.json"
    chosen = printed(f"torch_impl.select {front} --steps 40 --tasks 1 {on}")
    assert "behind the lowest" in chosen[0] and any(line.startswith("  u = ") for line in chosen)
    assert chosen[-2] == f"rule: {front}/best.json"
    assert chosen[-1].startswith("next: python -m torch_impl.tune ")
    short = f"--epochs 1 --epoch-length 5 --validate-every 1 --validation-tasks 1 {on}"
    first, before, *_, file, following = printed(f"torch_impl.tune {rule} {short} --out {tuned}")
    assert first.startswith("validation loss ") and before.startswith("before: u = ")
    assert file == f"rule: {tuned}" and following.startswith("next: python -m torch_impl.evaluate ")
    first, *told = printed(f"torch_impl.tune rnnprop --per-tensor {short} --out {tmp_path / 'tuned.h5'}")
    assert first.startswith("validation loss ") and told[-3].split()[0] == "x"
    assert told[-2] == f"teacher: {tmp_path / 'tuned.h5'}"
    assert told[-1].startswith("next: python -m torch_impl.evaluate --optimizers adam teacher:")
    few = f"--steps 5 --seeds 2 --trials 0 {on} --out {folder}"
    table = printed(f"torch_impl.evaluate --optimizers sgd rule:{rule} {few}")
    own = f"rule:{rule}"
    assert [line.split()[0] for line in table[2:]] == ["sgd", own, f"{own}:", "evaluation:", "report:"]
    assert table[-2:] == [f"evaluation: {folder / 'evaluation.h5'}", f"report: {folder / 'report.html'}"]
    assert load_trajectories(trajectories).seed == 0
    assert Rule.load(front / "best.json").name == "good"
    assert Rule.load(tuned).provenance["tuned"]["epochs"] == 1
    assert len(load_evaluation(folder / "evaluation.h5").rows) == 4


def test_errors_that_are_not_ours_are_not_taken_for_bad_input(monkeypatch, capsys):
    """A bug must show as one."""
    monkeypatch.setattr("torch_impl.backend.device_of", lambda name: {}["missing"])
    assert call("torch_impl.evaluate --problem quadratic") == 1
    err = capsys.readouterr().err
    assert "KeyError: 'missing'" in err and "a mistake of ours" in err and err.count("\n") == 1
    assert call("torch_impl.evaluate --problem quadratic --debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_front_is_evaluated_rule_by_rule(front, tmp_path):
    config = EvaluateConfig(optimizers=(f"front:{front}",), out=str(tmp_path / "out"), **ONCE)
    rows = evaluate(config)
    assert {row.optimizer for row in rows} == {f"rule:{f}" for f in front.glob("rule_*.json")}
    assert all(row.settings["sha256"] for row in rows)
