"""Rules, teachers and baselines move parameters alike in torch and in Keras, on the same gradients."""

from collections.abc import Sequence

import numpy as np
import pytest

from common.errors import L2OError
from common.tables.baselines import BASELINES, parse_spec
from common.tables.teachers import TEACHERS
from interchange.files.trajectories import Trajectories, load_trajectories
from interchange.rule.rule import Rule
from tests.helpers.samples import SHAPES, enlarged, start
from tests.parity.backends import SELDOM, assert_same_recordings, tf, tf_impl, torch, torch_impl
from tests.parity.rule_conformance import EVERYTHING

keras = pytest.importorskip("keras")
from tests.helpers import tf_side, torch_side  # noqa: E402

SIDES = (torch_side, tf_side)
torch_baselines, tf_baselines = torch_impl.optimizers.baselines, tf_impl.optimizers.baselines
Gradients = Sequence[Sequence[np.ndarray | None]]

COORDINATEWISE = [name for name, row in BASELINES.items() if row.coordinatewise and not row.package]

RULES = {"a rule of everything": EVERYTHING, "a number": Rule.from_text("0.1 / t")}
RULES |= {name: Rule.named(name) for name in ("adam", "lion")}
# Rows of torch's tensors are columns of Keras', which an orthogonal factor does not mind, but features
# of rows do: they are in tests/backends/test_tensor_features.py.
ALIKE = [name for name, row in TEACHERS.items() if not {"g_row", "g_col"} & set(row.inputs)]


def after(impl, make, grads: Gradients, path: str = "", dtype: str = "float64") -> list[list[np.ndarray]]:
    """The parameters after every step of ``make(parameters)``; Keras steps in a graph if no path is given."""
    params, seen = impl.parameters(start(), dtype), []
    step = impl.stepper(make(params), params, path or {"torch": "plain", "tf": "graph"}[impl.NAME])
    for row in grads:
        step(*row)
        seen.append([np.asarray(impl.value(p), np.float64).copy() for p in params])
    return seen


def by_both(name: str, lr: float, grads: Gradients, code: str, **options) -> list:
    """A rule or a teacher: torch's, Keras's."""
    given, path = RULES[name] if name in RULES else enlarged(name), "compiled" * (code == "compiled")
    return [
        after(impl, lambda p, i=impl: i.optimizer(p, given, lr, **options), grads, path) for impl in SIDES
    ]


def gradients(steps: int) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(1)
    scales = np.exp(generator.uniform(-8, 2, size=steps))
    return [[s * generator.normal(size=shape) for shape in SHAPES] for s in scales]


def assert_close(got, want, rtol: float, atol: float) -> None:
    for step, (row, others) in enumerate(zip(got, want, strict=True)):
        for a, b in zip(row, others, strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=f"step {step + 1}")


@pytest.mark.filterwarnings("ignore:rule .* moves weights at zero gradient")
@pytest.mark.parametrize("name", [*RULES, *ALIKE])
@pytest.mark.slow_with(code=("plain",), name=SELDOM)
def test_rules_and_teachers_agree_step_by_step(name, code):
    options = {"weight_decay": 0.1} if name in ("lion", "rp_s") else {}
    steps = 50 if code == "plain" else 15
    want, got = by_both(name, 0.3 if options else 1.0, gradients(steps), code, **options)
    assert_close(got, want, 1e-10, 1e-12)
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(got[-1], start(), strict=True))


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("name", ["a rule of everything", "rnnprop"])
@pytest.mark.parametrize("spoilt", [None, np.nan], ids=["no gradient", "a gradient that is not finite"])
def test_a_tensor_that_rests_for_nine_steps_goes_on_with_its_own_t(name, spoilt, code):
    """Its count and state are those of the steps it took, in both."""
    bad = None if spoilt is None else np.full(5, spoilt)
    grads = [[row[0], bad if 2 <= k < 11 else row[1], row[2]] for k, row in enumerate(gradients(20))]
    want, got = by_both(name, 1.0, grads, code, weight_decay=0.1)
    assert_close(got, want, 1e-10, 1e-12)
    assert np.array_equal(got[1][1], got[10][1]) and not np.array_equal(got[10][1], got[11][1])


@pytest.mark.parametrize("name", COORDINATEWISE)
def test_baselines_agree_in_float32_to_its_rounding(name):
    """In float64 each is the oracle's: tests/backends/test_optimizers.py."""
    want, got = (
        after(impl, lambda p, i=impl: i.baseline(name, p, 0.01), gradients(20), dtype="float32")
        for impl in SIDES
    )
    assert_close(got, want, 1e-5, 1e-5)


def floats(name: str) -> tuple[int, float]:
    """Floats of state beside step counters after a step: in torch, and in Keras per tensor and parameter."""
    params = [torch.nn.Parameter(torch.tensor(a)) for a in start()]
    optimizer = torch_baselines.make(name, params, 0.01)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in (state | {"step": None}).values()]
    variables = [keras.Variable(a, dtype="float64") for a in start()]
    mine = tf_baselines.make(name, variables, 0.01).variables
    mine = [v for v in mine if not v.name.endswith("step") and v.name not in ("iteration", "learning_rate")]
    return sum(v.numel() for v in kept if v is not None), sum(int(np.prod(v.shape)) for v in mine)


@pytest.mark.parametrize("name", COORDINATEWISE)
def test_baselines_keep_as_much_state_in_both(name):
    """One or two floats per parameter, and NAdam's product of momenta per tensor."""
    size, tensors = sum(int(np.prod(shape)) for shape in SHAPES), len(SHAPES)
    expected = {"sgd": 0, "adam": 2, "adamw": 2, "schedule-free": 2, "nadamw": 2 + tensors / size}
    assert floats(name) == (expected.get(name, 1) * size,) * 2


def test_schedule_free_agrees_where_the_learning_rate_falls():
    """As the cosine of a SPEC has it fall; the authors' c stays 1 / t, lr being largest at the start."""
    grads, rates = gradients(40), [0.05 * (1.0 + np.cos(np.pi * k / 40)) for k in range(40)]
    params = [torch.nn.Parameter(torch.tensor(a)) for a in start()]
    variables = [keras.Variable(a, dtype="float64") for a in start()]
    theirs = torch_baselines.make("schedule-free", params, 0.1, {"weight_decay": 0.1})
    ours = tf_baselines.make("schedule-free", variables, 0.1, {"weight_decay": 0.1})
    xs, zs, v = start(), start(), [np.zeros(shape) for shape in SHAPES]
    for k, (row, lr) in enumerate(zip(grads, rates, strict=True)):
        theirs.param_groups[0]["lr"] = lr
        ours.learning_rate = lr
        for p, g in zip(params, row, strict=True):
            p.grad = torch.tensor(np.asarray(g))
        theirs.step()
        ours.apply([tf.constant(g) for g in row], variables)
        for i, g in enumerate(row):
            y = 0.1 * zs[i] + 0.9 * xs[i]
            v[i] = 0.999 * v[i] + 0.001 * g * g
            zs[i] = zs[i] - lr * (g / (np.sqrt(v[i] / (1 - 0.999 ** (k + 1))) + 1e-8) + 0.1 * y)
            xs[i] = xs[i] + (zs[i] - xs[i]) / (k + 1)
            want = 0.1 * zs[i] + 0.9 * xs[i]
            np.testing.assert_allclose(params[i].detach().numpy(), want, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(variables[i].numpy(), want, rtol=1e-12, atol=1e-12)
            e = theirs.state[params[i]]["e"].numpy()
            np.testing.assert_allclose(want + (1 / 0.9 - 1) * e, xs[i], rtol=1e-11, atol=1e-12)


SPECS = ["adam:lr=0.03", "sgd:lr=0.1,momentum=0.5", "teacher:rp_s,lr=0.5", "rule:RULE,lr=0.7"]


@pytest.mark.parametrize("text", SPECS)
def test_sources_are_the_same_optimizers(text, tmp_path):
    RULES["adam"].save(tmp_path / "rule.json")
    spec = parse_spec(text.replace("RULE", str(tmp_path / "rule.json")))
    ours, theirs = tf_impl.sources.load(spec), torch_impl.sources.load(spec)
    assert (ours.sha256, ours.row()) == (theirs.sha256, theirs.row())
    got, want = (
        after(impl, lambda p, s=source: s.optimizer(p, spec.lr), gradients(10))
        for impl, source in ((tf_side, ours), (torch_side, theirs))
    )
    assert_close(got, want, 1e-10, 1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "nesterov:momentum=0",
        "sgd:nesterov=1",
        "sgd:momentum=0.9,nesterov=0.5",
        "adam:beta1=1",
        "adamw:beta2=2",
        "nadamw:beta2=1",
        "schedule-free:beta1=1",
    ],
)
def test_sources_refuse_the_same_options(text):
    for sources in (tf_impl.sources, torch_impl.sources):
        with pytest.raises(ValueError, match=f"^{text}: "):
            sources.load(parse_spec(text))


def recorded(backend: str, runs: int, path) -> Trajectories:
    """The same gradients given to Adam, as its recorder writes them."""
    recorder = None
    for run in range(runs):
        if backend == "torch":
            params = [torch.nn.Parameter(torch.tensor(a)) for a in start()]
            optimizer = torch.optim.Adam(list(zip("abc", params, strict=True)), 0.1)
        else:
            named = zip("abc", start(), strict=True)
            params = [keras.Variable(a, dtype="float64", name=n) for n, a in named]
            optimizer = tf_baselines.make("adam", params, 0.1)
        package = torch_impl if backend == "torch" else tf_impl
        if recorder is None:
            recorder = package.recording.recorder.Recorder(
                optimizer, features="mt+gt+g", coordinates=11, steps=15
            )
        else:
            recorder.start_run(optimizer)
        for step, row in enumerate(gradients(20)[run:]):
            recorder.loss(1.0 / (step + 1))
            if backend == "torch":
                for p, g in zip(params, row, strict=True):
                    p.grad = torch.tensor(np.asarray(g))
                optimizer.step()
            else:
                optimizer.apply([tf.constant(g) for g in row], params)
    return load_trajectories(recorder.save(path))


@pytest.mark.parametrize("baselines", [torch_baselines, tf_baselines], ids=["torch", "tf"])
def test_a_baseline_that_no_table_has_is_refused_with_those_it_has(baselines):
    with pytest.raises(L2OError, match="unknown optimizer 'foo'; known: sgd"):
        baselines.make("foo", [], 0.1)


@pytest.mark.parametrize("runs", [1, 3])
def test_recorders_write_the_same(runs, tmp_path):
    ours, theirs = (recorded(name, runs, tmp_path / f"{name}.h5") for name in ("keras", "torch"))
    assert len(ours.runs) == 3
    assert_same_recordings(theirs, ours, atol=1e-13, but=("source_json",))
