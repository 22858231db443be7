"""Bad input: one line and exit code 2 from every command, before anything is written."""

import json
import logging

import pytest

from common.tables.teachers import TEACHERS
from interchange.rule.rule import Rule
from tests.helpers.processes import launched

pytest.importorskip("torch")

# Command -> words behind it -> what the line says.
BAD = {
    "torch_impl.train": {
        "--problem digits-mpl": "unknown problem 'digits-mpl' (did you mean 'digits-mlp'?)",
        "--teacher rnn": "known: " + ", ".join(TEACHERS),
        "--inputs mt+nosuch": "unknown feature 'nosuch'; known: g, m_tilde, g_tilde",
        "--inputs mt+m_tilde": "expected each feature once, got m_tilde twice",
        "--scale -1": "--scale: expected at least 0, got -1",
        "--weights normal": "unknown initial weights 'normal' (did you mean",
        "--steps 3": "unrecognized arguments: --steps",
        "--epoch-length -5": "--epoch-length: expected at least 1, got -5",
        "--unroll 0": "--unroll: expected at least 1, got 0",
        "--lr 0": "--lr: expected a number above 0",
        "--lr nan": "--lr: expected a finite number",
        "--coordinates 1.5": "--coordinates: expected at most 1",
        "--epochs many": "--epochs",
        "--epochs 2.5": "--epochs",
        "--seed -1": "--seed: expected at least 0",
        "--random-scaling -1": "at least 0",
        "--loss mean": "--loss: expected one of sum, last",
        "--dtype float16": "--dtype: expected one of float32, float64",
        "--device tpu9": "--device 'tpu9' cannot be used",
        "--device cuda:77": "use --device cpu",
        "--problem mnist-mlp --data-dir nowhere": "data set 'mnist' not found",
        "--init nowhere": "nowhere: No such file or directory; check the path, or name",
        "--resume nowhere": "nowhere: expected a run folder",
        "--config nowhere.toml": "cannot read nowhere.toml: No such file",
        "--config key.toml": "unknown key 'epocks'",
        "--config type.toml": "epochs: expected int, got '3'",
        "--config broken.toml": "broken.toml: expected TOML",
        "--config broken.json": "broken.json: not valid JSON",
        "--config twice.json": "the key 'lr' is given twice",
        "--config digits.toml": "lr: expected a number of float64, got one of 400 digits",
        "--config dots.toml": "a line of more than 100 dots",
        "--config /dev/zero": "expected a regular file",
        "--config large.toml": "large.toml: expected at most 65536 bytes",
        "--config list.json": "expected keys and values, got list",
        "--config binary.toml": "binary.toml: expected TOML, got a broken file",
        "--problem quadratic,lass": "unknown problem 'lass' (did you mean 'lasso'",
        "--horizon 20-200": "--horizon: expected steps such as 200, or a range",
        "--problem quadratic,lasso --start x": "--start: expected one problem",
        "--problem digits-mlp,quadratic --dataset synthetic": "quadratic is a function and has no data",
        "--estimator forward": "--estimator: expected one of first, second, es, pes",
        "--estimator es --coordinates 0.5": "leave out --coordinates",
        "--tasks 0": "--tasks: expected at least 1",
        "--average 1.5": "--average: expected at most 1",
        "--imitation 2": "--imitation: expected at most 1",
        "--jobs 2": "--jobs: expected --estimator es or pes",
    },
    "torch_impl.record": {
        "": "SOURCE is missing",
        "sgd": "--problem is missing: sgd is no training run that names one",
        "sgd --problem quadratik": "did you mean 'quadratic'?",
        "sgd --runs 2": "--runs: expected at least 3",
        "nowhere/run --problem quadratic": "unknown optimizer 'nowhere/run'",
        "sgd:lr=1e300 --problem quadratic --runs 3 --dtype float64 --quiet": "diverged; lower its lr",
        "sgd:lr=1e300 --problem quadratic --runs 3 --quiet": "expected lr of at most 3.4e+38, got 1e+300",
        "rp_x --problem quadratic": "unknown optimizer 'rp_x' (did you mean 'rp_s'?); known: sgd, ",
        "sgd:lr=1000 --problem quadratic --runs 3 --steps 60 --quiet": "every trajectory of sgd:lr=1000 on",
        "muon:lr=0.1 --problem digits-mlp": "expected an optimizer that works coordinate by coordinate",
        "rule:theta.json --problem quadratic": "reads theta",
    },
    "torch_impl.select": {"": "FRONT is missing", "nowhere": "nowhere"},
    "torch_impl.tune": {
        "": "RULE is missing",
        "nowhere.json": "nowhere.json",
        "constant.json --problem quadratic": "expected a rule with constants to tune, got none",
        "theta.json --problem quadratic": "reads theta",
        "column.json --problem quadratic": "feature 'a' has no definition",
    },
    "torch_impl.evaluate": {
        "--seeds 0": "--seeds: expected at least 1",
        "--steps 10 0": "--steps: expected at least 1",
        "--problem digits": "unknown problem 'digits'",
        "--problem quadratic,digits": "unknown problem 'digits'",
        "--problem suite:cor": "unknown suite 'cor'",
        "--problem suite:core --steps 5": "a suite has its own horizons; leave --steps out",
        "--cluster slurm": "expected a cluster of the form",
    },
    "torch_impl.optimize": {
        "": "OPTIMIZER is missing",
        "adam --problem digits-mpl": "unknown problem 'digits-mpl'",
        "adam --split half": "--split: expected one of meta_train, evaluation",
        "adam --steps 0": "--steps: expected at least 1, got 0",
        "adam --runs 0": "--runs: expected at least 1, got 0",
        "adam --problem mnist-mlp --data-dir nowhere": "'mnist' not found",
        "adam --start nowhere": "nowhere",
        "adam --device tpu9": "--device 'tpu9' cannot be used",
    },
    "interchange.distill": {
        "": "TRAJECTORIES is missing",
        "f --time 1": "f: No such file",
        "f --engine luck": "unknown engine 'luck'; known: operon, pysr",
        "f --time 0": "--time: expected a number above 0",
        "f --max-size 2": "--max-size: expected at least 3",
        "f --select luck": "--select: expected one of r2, knee, rollout",
        "f --memory 0": "--memory: expected a number above 0",
        "f --restarts 0": "--restarts: expected at least 1",
        "f --cluster slurm": "expected a cluster of the form dask",
        "f --active -1": "--active: expected at least 0",
    },
    "interchange.export": {
        "rp_s --to torch": "export it to onnx",
        "rp_x --to onnx": "unknown optimizer 'rp_x' (did you mean 'rp_s'?)",
        "teacher:rp_x --to onnx": "shipped teacher",
        "adam --to onxx": "did you mean 'onnx'",
    },
}
# Specifications of an optimizer, which several commands take.
SPECS = {
    "adamm": "unknown optimizer 'adamm' (did you mean 'adam'?)",
    "adam:gamma=1": "unknown option 'gamma'; known: lr, beta1, beta2, eps",
    "adam:lr=fast": "expected lr=NUMBER",
    "adam:lr": "expected lr=NUMBER",
    "sgd:lr=-1": "expected lr=NUMBER",
    "sgd:lr=0": "expected lr=NUMBER",
    "sgd:lr=nan": "expected lr=NUMBER",
    "sgd:lr=inf": "expected lr=NUMBER",
    "adam:beta1=1.5": "adam:beta1=1.5",
    "nesterov:momentum=0": "momentum",
    "rule:": "expected rule:PATH",
    "rule:nowhere.json": "nowhere.json",
    "teacher:nowhere": "nowhere",
    "rule:theta.json,beta=1": "unknown option 'beta'; known: lr",
    "rule:name.json": "name.json: unknown name 'h'",
    "rule:code.json": "code.json: ",
    "rule:column.json": "feature 'a' has no definition",
    "rule:text.json": "text.json",
}
# Data that do not suit a problem, wherever one is named.
DATA = {
    "quadratic --dataset digits": "--dataset digits: quadratic is a function",
    "digits-mlp --dataset digit": "unknown data set 'digit' (did you mean 'digits'?)",
    "digits-mlp --dataset none.npz": "expected an npz",
    "lenet": "data set 'cifar10' not found (looked in nowhere",
    "lenet --data-dir here": "looked in here",
    "lenet --dataset digits": "take larger images (--dataset)",
    "digits-mlp --start none": "--start: ",
}
FILES = {
    "key.toml": b"epocks = 3\n",
    "type.toml": b'epochs = "3"\n',
    "broken.toml": b"epochs = [3\n[[",
    "broken.json": b'{"epochs": 3,\n\n',
    "list.json": b"[1]",
    "twice.json": b'{"lr": 1.0, "lr": 2.0}',
    "digits.toml": b"lr = " + b"9" * 400,
    "dots.toml": b"a" + b".a" * 20_000 + b" = 1",
    "large.toml": b"#" * 70_000,
    "binary.toml": b"\xff\xfe\x00",
    "text.json": b"c0 * g",
}
TAKING_SPECS = ("torch_impl.evaluate --optimizers", "torch_impl.record", "torch_impl.optimize")
CASES = [(f"{command} {words}", told) for command, rows in BAD.items() for words, told in rows.items()]
CASES += [
    (f"{start} {spec} --problem quadratic", told) for start in TAKING_SPECS for spec, told in SPECS.items()
]
for start in ("train", "evaluate", "optimize adam:lr=0.01", "record adam:lr=0.01"):
    CASES += [(f"torch_impl.{start} --problem {words}", told) for words, told in DATA.items()]


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """A working directory with the broken files; the hashes of rules edited by hand are left out."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    rule = Rule.from_text("c0 * g", {"c0": -1.0})
    for name, text in {"name": "c0 * h", "code": "__import__('os').system('touch pwned')"}.items():
        payload = json.loads(rule.to_json()) | {"expression": text}
        del payload["sha256"]
        (tmp_path / f"{name}.json").write_text(json.dumps(payload))
    Rule.from_text("c0 * a", {"c0": -1.0}, {"a": None}).save(tmp_path / "column.json")
    Rule.from_text("c0 * g - 0.1 * theta", {"c0": -1.0}).save(tmp_path / "theta.json")
    Rule.from_text("-g").save(tmp_path / "constant.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("L2O_DATA", raising=False)
    logging.disable(logging.WARNING)
    yield tmp_path
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore:.*carries no sha256")
@pytest.mark.parametrize(("line", "told"), CASES, ids=[line for line, _ in CASES])
def test_bad_input_is_one_line_and_nothing_is_written(line, told, inside, refused):
    before = sorted(inside.rglob("*"))
    assert told in refused(line)
    assert sorted(inside.rglob("*")) == before


def test_bad_input_is_one_line_from_a_shell_too(tmp_path):
    process = launched(f"-m torch_impl.train --problem nonsense --out {tmp_path / 'run'}".split())
    out, err = process.communicate()
    assert process.returncode == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("python -m torch_impl.train: error: unknown problem 'nonsense'; known: quadratic")
    assert not (tmp_path / "run").exists()
