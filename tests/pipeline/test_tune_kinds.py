"""Tuning a rule by every estimator, on several problems and horizons, in either framework."""

import pytest

from common.errors import L2OError
from interchange import Rule
from interchange.meta.config import TuneConfig
from tests.helpers.commands import saved_rule

KINDS = {
    "first": {"estimator": "first"},
    "second": {"estimator": "second"},
    "forward": {"estimator": "forward"},
    "es": {"estimator": "es", "pairs": 3},
    "pes": {"estimator": "pes", "pairs": 3},
    "mix": {"problem": "quadratic,lasso", "horizon": "10..60", "epoch_length": 200, "epochs": 8},
    "factors and kinds": {"problem": "quadratic,digits-mlp", "factors": True, "kinds": True, "pairs": 4},
    "schedule and decay": {"estimator": "first", "schedule": 0.001, "weight_decay": 1e-4},
    "tasks and average": {"estimator": "first", "problem": "quadratic,lasso", "tasks": 2, "average": 0.5},
}
QUICK_IN_TF = ("forward", "pes")


@pytest.fixture
def tuned(tmp_path):
    """tuned(backend, **fields): the rule after tuning a momentum rule that is too slow, and its record."""
    source = saved_rule(tmp_path, "c0 * ema(g, c1)", c0=-0.02, c1=0.6)

    def of(backend: str, **fields) -> Rule:
        module = pytest.importorskip(f"{backend}_impl.tune")
        given = {"problem": "quadratic", "epochs": 4, "epoch_length": 40, "unroll": 20, "lr": 0.1}
        given |= {"validation_tasks": 1, "validate_every": 1, "overwrite": True, "quiet": True}
        given |= {"rule": source, "out": str(tmp_path / "tuned.json")}
        return module.tune(TuneConfig(**given | fields))

    return of


@pytest.mark.parametrize(
    ("kind", "backend"),
    [(kind, "torch") for kind in KINDS]
    + [pytest.param(k, "tf", marks=[] if k in QUICK_IN_TF else pytest.mark.slow) for k in KINDS],
)
def test_every_kind_of_tuning_lowers_the_validation_loss(kind, backend, tuned):
    record = tuned(backend, **KINDS[kind]).provenance["tuned"]["validation"]
    assert record["best"] < 0.98 * record["before"] < float("inf")


def test_forward_and_reverse_first_order_agree_where_nothing_is_truncated(tuned):
    """One unroll an epoch: the same gradient, so the same constants."""
    one, other = (
        tuned("torch", estimator=name, unroll=40, dtype="float64").constants for name in ("first", "forward")
    )
    assert other == pytest.approx(one, rel=1e-9)


def test_forward_is_free_of_truncation_and_reverse_is_not(tuned):
    one, other = (tuned("torch", estimator=name, unroll=5).constants for name in ("first", "forward"))
    assert other != pytest.approx(one, rel=1e-3)


def test_pairs_in_two_processes_give_the_same_rule(tuned):
    one, other = (
        tuned("torch", epochs=1, pairs=2, problem="quadratic,lasso", jobs=jobs).constants for jobs in (1, 2)
    )
    assert other == one


def test_own_tasks_stay_in_one_process(tmp_path):
    torch = pytest.importorskip("torch_impl")
    config = TuneConfig(rule=saved_rule(tmp_path, c0=-0.02), jobs=2, quiet=True)
    with pytest.raises(L2OError, match="stay in this process"):
        torch.tune(config, lambda stream, number: None)


def test_a_rule_tuned_on_own_tasks_names_no_problem(tmp_path):
    """An evaluation would take the default for one that the rule has seen."""
    torch = pytest.importorskip("torch_impl")
    settings = {"epochs": 1, "epoch_length": 4, "validation_tasks": 1, "pairs": 1, "quiet": True}
    config = TuneConfig(rule=saved_rule(tmp_path, c0=-0.02), **settings)
    other = TuneConfig(rule=config.rule, problem="quadratic")
    rule = torch.tune(config, lambda stream, number: torch.backend.table_task(other, stream, number))
    assert rule.provenance["tuned"]["problem"] == ""


def test_kinds_and_factors_come_back_in_the_rule_and_its_record(tuned):
    rule = tuned("torch", problem="digits-mlp,quadratic", factors=True, kinds=True, sigma=0.2)
    kinds = rule.provenance["tuned"]["kinds"]
    assert kinds.keys() == {"matrix", "kernel", "vector"} and kinds["matrix"] == rule.constants
    assert kinds["matrix"]["c1"] == kinds["vector"]["c1"]  # decays are shared
    assert kinds["matrix"]["c0"] != kinds["vector"]["c0"]
    assert rule.scale != 1.0  # the factors' geometric mean


def test_start_values_and_settings_are_on_record(tuned):
    rule = tuned("torch", constants=("c0=-0.05",), schedule=0.01, weight_decay=1e-3)
    record = rule.provenance["tuned"]
    assert record["from_constants"] == {"c0": -0.05, "c1": 0.6, "slowing": 0.01, "weight_decay": 1e-3}
    assert record["settings"]["constants"] == ["c0=-0.05"] and record["settings"]["schedule"] == 0.01
    assert str(rule.expression) == "c0 * ema(g, c1) / (1.0 + slowing * t) - weight_decay * theta"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factors": True, "estimator": "first"}, "--factors needs --estimator es, got first"),
        ({"kinds": True, "problem": "quadratic,lasso", "estimator": "pes"}, "--kinds on several problems"),
        ({"constants": ("c0:1",)}, "--constants: expected NAME=NUMBER, got 'c0:1'"),
        ({"constants": ("c9=1",)}, "unknown constant 'c9'"),
    ],
)
def test_what_cannot_be_tuned_together_is_refused_in_one_line(fields, message, tuned):
    with pytest.raises(L2OError, match=message):
        tuned("torch", **fields)
