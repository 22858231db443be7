"""Steps of many rules and teachers on every path, by gradients some of which are hard.

A case is a tensor. All cases of a path are in one group of an optimizer, whatever their dtypes and layouts.
"""

import abc
import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from interchange.emit import TARGETS
from interchange.rule.rule import Rule
from tests.parity.rule_runners import CSteps, c_library, load

Array = np.ndarray
Row = dict[str, Array | None]  # case -> gradient, in float64
# Why a coordinate of an exported optimizer is left alone -> its case, rule, learning rate and gradient.
GUARDED = {
    "gradient": ("three", "-g", 1.0, np.nan),
    "update": ("three", "-g / greater(1.5, g)", 1.0, 2.0),
    "state": ("three", "-sign(ema(square(g), 0.5))", 1.0, 1e30),
    "moved parameter": ("three halves", "-g", 10.0, 6e4),
}
OWN = {"direction": Rule.from_text("-g / abs(g)")}
OWN |= {cause: Rule.from_text(text) for cause, (_, text, *_) in GUARDED.items()}

RULES = (
    "sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adam", "amsgrad", "lion", "rnnprop_tuned",
    "dm_48", "dm_49", "psi",
)  # fmt: skip
FAMILIES = {"rules": RULES, "teachers": ("rnnprop", "dm", "rp_s")}
FEW = {"rules": ("amsgrad", "lion", "rnnprop_tuned"), "teachers": ("rp_s",)}
STEPS, HARD = 6, 3  # the step whose gradients are hard
LR, DECAY = 2.0, 0.1
# 1 stands for the largest number of the dtype.
KINDS = (np.nan, np.inf, -np.inf, 0.0, 1e-42, 1e20, 1e30, 3e38, 1.0, -1.0)
TINY, DEAD = -3, -2  # coordinates of gradients of 1e-42 and 0 at every step


@dataclasses.dataclass(frozen=True)
class Case:
    """A tensor of shape ``shape``.

    Attributes:
        hard: coordinate -> its gradient at step ``HARD``; None: the tensor has none then.
        layout: of torch; "rows" is a gradient of which Keras is given slices.
        where: "" on every path, "full" on no path whose graphs take long but slowly, "torch", "eager" where a
            graph would be made anew, or "alone".
        level: what it starts from; None: something of everything.
    """

    dtype: str
    shape: tuple[int, ...]
    hard: dict[int, Any] | None = dataclasses.field(default_factory=dict)
    layout: str = ""
    where: str = ""
    level: float | None = None

    @property
    def size(self) -> int:
        """Coordinates; a complex number is two, the last axis."""
        return int(np.prod(self.shape))

    def start(self) -> Array:
        """Values that no step moves to 0."""
        if self.level is not None:
            return np.full(self.shape, self.level)
        k = np.arange(self.size)
        start = np.round(8.0 * (np.cos(k) + 3.0 * (-1.0) ** k)) / 8.0  # exact in every dtype
        if self.hard is _ALL:
            start[TINY] = start[DEAD]
        return start.reshape(self.shape)

    def gradient(self, step: int, hard: bool) -> Array | None:
        """Of step ``step``, from 1; those of a coordinate have one sign."""
        if self.layout == "never" or (hard and self.hard is None and step == HARD):
            return None
        k = np.arange(self.size)
        g = (-1.0) ** (k // 3) * np.round(64.0 * (0.6 + 0.3 * np.sin(1.0 + k + 2.0 * step))) / 64.0
        if self.layout == "rows":
            g.reshape(self.shape)[[0, 2, 4]] = 0.0
        for at, value in (self.hard or {}).items() if hard else ():
            if step == HARD or at < 0:
                g[at] = value * _LARGEST[self.dtype] if abs(value) == 1.0 else value
        return g.reshape(self.shape)

    def ordinary(self) -> Array:
        """Which coordinates have no hard gradient."""
        mask = np.full(self.size, self.hard is not None)
        mask[list(self.hard or ())] = False
        return mask


_LARGEST = {
    "float64": float(np.finfo(np.float64).max),
    "float32": float(np.finfo(np.float32).max),
    "float16": float(np.finfo(np.float16).max),
    "bfloat16": 255.0 * 2.0**120,
}
_ALL = {3 * k + 1: kind for k, kind in enumerate(KINDS)} | {TINY: 1e-42, DEAD: 0.0}
_SOME = {1: np.nan, 4: 1e30, 6: -np.inf, 11: 0.0}
CASES = {
    **{f"kinds in {name}": Case(name, (5, 7), _ALL) for name in _LARGEST},
    "all of it": Case("float32", (3,), dict.fromkeys(range(3), np.nan)),
    "a number": Case("float32", (), where="full"),
    "a hard number": Case("float64", (), {0: np.inf}),
    "empty": Case("float32", (0, 3), where="full"),
    "never": Case("float32", (2,), layout="never"),
    "once": Case("float32", (2,), None, where="eager"),
    "rows": Case("float32", (5, 2), {2: np.nan, 7: np.inf}, "rows", "full"),
    "strided": Case("float32", (4, 3), _SOME, "strided", "torch"),
    "strided gradient": Case("float64", (4, 3), _SOME, "strided gradient", "torch"),
    "channels last": Case("float32", (2, 3, 2, 2), _SOME, "channels last", "torch"),
    "channels last gradient": Case("bfloat16", (2, 3, 2, 2), _SOME, "channels last gradient", "torch"),
    "complex64": Case("complex64", (6, 2), _SOME, where="torch"),
    "complex128": Case("complex128", (6, 2), _SOME, where="torch"),
    "pair": Case("float32", (2,), where="alone", level=1.0),
    "columns": Case("float32", (3, 2), where="alone", level=1.0),
    "three": Case("float32", (3,), where="alone", level=1.0),
    "three halves": Case("float16", (3,), where="alone", level=1.0),
}


def rule(name: str) -> Rule:
    return OWN[name] if name in OWN else Rule.named(name)


def row(cases: Sequence[str], step: int, hard: bool) -> Row:
    return {name: CASES[name].gradient(step, hard) for name in cases}


@dataclasses.dataclass
class Track:
    """What became of a tensor: all arrays [step, ..., coordinate], after each step; ``theta`` from before.

    Attributes:
        left: coordinates left alone by each step; None where the path does not count.
        t: steps taken, after each.
    """

    theta: Array
    state: list[Array]
    left: Array
    t: Array


Seen = tuple[Array, list[Array], int, int]  # parameter, state, coordinates left alone, t


class Path(abc.ABC):
    """Optimizers of ``subjects``, with a tensor for every one of ``cases``."""

    def __init__(
        self, subjects: Sequence[str], cases: Sequence[str], lr: float = LR, decay: float = DECAY
    ) -> None:
        self.subjects, self.cases, self.lr, self.decay = subjects, cases, lr, decay
        self.prepare()

    def prepare(self) -> None:  # noqa: B027 - some have nothing to make
        """What is made once."""

    @abc.abstractmethod
    def reset(self) -> None:
        """As before the first step."""

    @abc.abstractmethod
    def step(self, given: Row) -> None:
        """One of all optimizers."""

    @abc.abstractmethod
    def see(self, subject: str, case: str) -> Seen:
        """A tensor as it is."""

    def tell(self) -> None:  # noqa: B027 - most tell by themselves
        """Say what has to be asked for on this path."""


class Torch(Path):
    """``SymbolicOptimizer`` and ``LearnedOptimizer``."""

    compiled, backend = True, ""

    def prepare(self) -> None:
        subjects, cases = self.subjects, self.cases
        self.params = {name: {case: self._parameter(CASES[case]) for case in cases} for name in subjects}
        self.optimizers = {name: self._made(name, list(self.params[name].values())) for name in subjects}
        self.steps = {name: optimizer.step for name, optimizer in self.optimizers.items()}
        if self.backend:
            import torch

            torch._dynamo.reset()
            compiled = functools.partial(torch.compile, backend=self.backend, fullgraph=False)
            self.steps = {name: compiled(step) for name, step in self.steps.items()}

    def _made(self, name: str, params: list) -> Any:
        from torch_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer

        if name in FAMILIES["teachers"]:
            return LearnedOptimizer(params, name, self.lr, weight_decay=self.decay)
        foreach = None if self.compiled else False
        return SymbolicOptimizer(params, rule(name), self.lr, weight_decay=self.decay, foreach=foreach)

    @staticmethod
    def _tensor(case: Case, values: Array, layout: str) -> Any:
        import torch

        x = torch.tensor(values.astype(np.float64))
        if case.dtype.startswith("complex"):
            x = torch.view_as_complex(x)
        x = x.to(getattr(torch, case.dtype))
        if layout == "strided":
            return torch.stack([x, x], -1).flatten(-2)[..., ::2]
        return x.to(memory_format=torch.channels_last) if layout == "channels last" else x

    def _parameter(self, case: Case) -> Any:
        import torch

        return torch.nn.Parameter(self._tensor(case, case.start(), case.layout), requires_grad=False)

    def reset(self) -> None:
        for name in self.subjects:
            for case, p in self.params[name].items():
                p.copy_(self._tensor(CASES[case], CASES[case].start(), CASES[case].layout))
                for array in self.optimizers[name].state.get(p, {}).values():
                    array.zero_()

    def step(self, given: Row) -> None:
        for name in self.subjects:
            for case, p in self.params[name].items():
                layout = CASES[case].layout.removesuffix(" gradient")
                layout = "" if CASES[case].layout == "strided" else layout
                g = given[case]
                p.grad = None if g is None else self._tensor(CASES[case], g, layout)
            self.step_one(name)

    def step_one(self, name: str) -> None:
        """A step of one of the optimizers, by the gradients there are."""
        import torch

        with pytest.MonkeyPatch.context() as patch, torch._dynamo.config.patch(recompile_limit=64):
            if not self.compiled:
                patch.setenv("L2O_KERNELS", "0")
            self.steps[name]()

    def see(self, subject: str, case: str) -> Seen:
        import torch

        p = self.params[subject][case]
        x = torch.view_as_real(p) if p.is_complex() else p
        state = dict(self.optimizers[subject].state.get(p, {}))
        t, left = int(state.pop("step", 0)), int(state.pop("skipped", 0))
        state.pop("looks", None)
        return _flat(x.double().numpy()), [self._rows(a, x) for a in state.values()], left, t

    @staticmethod
    def _rows(a: Any, x: Any) -> Array:
        return a.double().reshape(-1, x.numel()).numpy() if x.numel() else np.zeros((1, 0))


class TorchPlain(Torch):
    compiled = False


class TorchCompile(Torch):
    compiled, backend = False, "eager"


class Inductor(Torch):
    compiled, backend = False, "inductor"


class TorchFile(Torch):
    """The exported file's ``RuleOptimizer``."""

    def _made(self, name: str, params: list) -> Any:
        return load(rule(name), "torch").RuleOptimizer(params, self.lr, self.decay)


class Keras(Path):
    """The same names in ``tf_impl``."""

    wrap: Callable[[Any], Any] = staticmethod(lambda f: f)

    def prepare(self) -> None:
        import keras

        subjects, cases = self.subjects, self.cases
        self.variables, self.optimizers = {}, {}
        for name in subjects:
            self.variables[name] = {
                case: keras.Variable(CASES[case].start(), dtype=CASES[case].dtype, name=f"v{k}")
                for k, case in enumerate(cases)
            }
            self.optimizers[name] = self._made(name)
            self.optimizers[name].build(list(self.variables[name].values()))
        self.fresh = {n: [v.numpy() for v in o.variables] for n, o in self.optimizers.items()}
        self.run = self.wrap(self._apply)

    def _made(self, name: str) -> Any:
        from tf_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer

        if name in FAMILIES["teachers"]:
            return LearnedOptimizer(name, self.lr, weight_decay=self.decay)
        return SymbolicOptimizer(rule(name), self.lr, weight_decay=self.decay)

    def _apply(self, given: dict) -> None:
        for name in self.subjects:
            grads = [given[case] for case in self.cases]
            self.optimizers[name].apply(grads, list(self.variables[name].values()))

    def reset(self) -> None:
        for name, optimizer in self.optimizers.items():
            for variable, value in zip(optimizer.variables, self.fresh[name], strict=True):
                variable.assign(value)
            for case, variable in self.variables[name].items():
                variable.assign(CASES[case].start())

    def step(self, given: Row) -> None:
        self.run({case: self._gradient(CASES[case], g) for case, g in given.items()})

    @staticmethod
    def _gradient(case: Case, g: Array | None) -> Any:
        import tensorflow as tf

        if g is None:
            return None
        g = tf.cast(tf.constant(g, tf.float64), case.dtype)
        if case.layout != "rows":
            return g
        # A row may come in parts; halves are exact.
        values = tf.stack([g[1] / 2, g[3], g[1] / 2])
        return tf.IndexedSlices(values, tf.constant([1, 3, 1]), tf.constant(case.shape))

    def see(self, subject: str, case: str) -> Seen:
        import tensorflow as tf

        optimizer, k = self.optimizers[subject], self.cases.index(case)
        t, left, state = self._kept(optimizer, k)
        theta = tf.cast(tf.convert_to_tensor(self.variables[subject][case]), tf.float64).numpy()
        n = CASES[case].size
        arrays = [v.numpy().astype(np.float64).reshape(-1, n) if n else np.zeros((1, 0)) for v in state]
        return _flat(theta), arrays, left, t

    def _kept(self, optimizer: Any, k: int) -> tuple[int, int, list]:
        t, left, _ = optimizer._tallies[k].numpy()
        return int(t), int(left), optimizer._states[k]


class KerasGraph(Keras):
    @staticmethod
    def wrap(f: Any) -> Any:
        import tensorflow as tf

        return tf.function(f, autograph=False)


class KerasXLA(Keras):
    def tell(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.check_finite()

    @staticmethod
    def wrap(f: Any) -> Any:
        import tensorflow as tf

        return tf.function(f, autograph=False, jit_compile=True)


class KerasFile(Keras):
    """The exported file's ``RuleOptimizer``."""

    def _made(self, name: str) -> Any:
        return load(rule(name), "tensorflow").RuleOptimizer(self.lr, self.decay)

    def _kept(self, optimizer: Any, k: int) -> tuple[int, int, list]:
        t, left, *slots = optimizer._stores[k]
        return int(t.numpy()), int(left.numpy()), slots


class KerasFileGraph(KerasFile):
    wrap = staticmethod(KerasGraph.wrap)

    def tell(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.look()


class KerasFileXLA(KerasFileGraph):
    wrap = staticmethod(KerasXLA.wrap)


class Optax(Path):
    """The exported file's transformation, all rules in one compiled function."""

    def prepare(self) -> None:
        import jax

        self.files = {name: load(rule(name), "optax") for name in self.subjects}
        self.made = {name: file.rule_optimizer(self.lr, self.decay) for name, file in self.files.items()}
        self.run = jax.jit(self._advance)

    def _advance(self, given: dict, kept: dict) -> dict:
        import optax

        found = {}
        for name, (params, state) in kept.items():
            updates, state = self.made[name].update(given, state, params)
            moved = {
                case: params[case] if u is None else optax.apply_updates(params[case], u)
                for case, u in updates.items()
            }
            found[name] = moved, state
        return found

    def reset(self) -> None:
        import jax
        import jax.numpy as jnp

        with jax.enable_x64(True):
            params = {case: jnp.asarray(CASES[case].start(), CASES[case].dtype) for case in self.cases}
            self.kept = {name: (params, made.init(params)) for name, made in self.made.items()}

    def step(self, given: Row) -> None:
        import jax
        import jax.numpy as jnp

        with jax.enable_x64(True), np.errstate(over="ignore"):
            grads = {
                case: None if g is None else jnp.asarray(g).astype(CASES[case].dtype)
                for case, g in given.items()
            }
            self.kept = self.run(grads, self.kept)

    def see(self, subject: str, case: str) -> Seen:
        params, state = self.kept[subject]
        slots = [np.asarray(slot[case]).astype(np.float64) for slot in state["slots"]]
        rows = [a.reshape(-1, a.size) if a.size else np.zeros((1, 0)) for a in slots]
        theta = np.asarray(params[case]).astype(np.float64)
        return _flat(theta), rows, int(state["skipped"][case]), int(state["t"][case])

    def tell(self) -> None:
        for name, (_, state) in self.kept.items():
            self.files[name].look(state)


class C(Path):
    """The exported file's step, an array at a time."""

    def prepare(self) -> None:
        self.cases = [case for case in self.cases if CASES[case].dtype in ("float32", "float64")]
        self.libraries = {name: c_library(TARGETS["c"].emit(rule(name))) for name in self.subjects}

    def reset(self) -> None:
        starts = {case: CASES[case].start().astype(CASES[case].dtype) for case in self.cases}
        self.steps = {
            (name, case): CSteps(library, start)
            for name, library in self.libraries.items()
            for case, start in starts.items()
        }

    def step(self, given: Row) -> None:
        for (_, case), steps in self.steps.items():
            if given[case] is not None:
                steps.step(given[case].astype(steps.theta.dtype), self.lr, self.decay)

    def see(self, subject: str, case: str) -> Seen:
        s = self.steps[subject, case]
        rows = [a.astype(np.float64).reshape(1, -1) for a in s.state]
        return _flat(s.theta.astype(np.float64)), rows, s.left, int(s.t[0])


PATHS: dict[str, type[Path]] = {
    "torch plain": TorchPlain,
    "torch compiled": Torch,
    "torch.compile": TorchCompile,
    "torch.compile by inductor": Inductor,
    "keras eager": Keras,
    "keras graph": KerasGraph,
    "keras xla": KerasXLA,
    "exported torch": TorchFile,
    "exported keras": KerasFile,
    "exported keras graph": KerasFileGraph,
    "exported keras xla": KerasFileXLA,
    "exported optax": Optax,
    "exported c": C,
}
INDUCTOR = "torch.compile by inductor"  # slow
SLOW_GRAPHS = ("torch.compile", INDUCTOR, "keras xla", "exported optax")
GRAPHS = (*SLOW_GRAPHS, "keras graph")
# Their steps or graphs take so long that all rules and teachers are in the slow test only.
FEW_ON = (*GRAPHS, "keras eager", "exported keras")


def cases_of(path: str, full: bool) -> list[str]:
    """As far as they exist on the path."""
    found = []
    for name, case in CASES.items():
        torch = path in ("torch plain", "torch compiled", "exported torch")
        torch &= path != "exported torch" or not case.dtype.startswith("complex")
        here = {"": True, "full": full or path not in GRAPHS, "torch": torch, "eager": path not in GRAPHS}
        if path == INDUCTOR and case.shape == () and case.dtype == "float64":
            continue  # test_state_of_a_number_in_float64_is_kept_by_aotautograd
        if here.get(case.where, False) and (full or path not in SLOW_GRAPHS or case.dtype != "float16"):
            found.append(name)
    return found


def subjects_of(path: str, family: str, full: bool) -> Sequence[str]:
    return FEW[family] if path in FEW_ON and not full else FAMILIES[family]


@functools.cache
def made(path: str, family: str, full: bool) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "rule .* moves weights")
        return PATHS[path](subjects_of(path, family, full), cases_of(path, full))


@functools.cache
def history(
    path: str, family: str, hard: bool, full: bool = False, steps: int = STEPS
) -> dict[tuple[str, str], Track]:
    """(rule or teacher, case) -> what became of it.

    Args:
        full: all rules, teachers and cases, also where their graphs take long.
    """
    run = made(path, family, full)
    run.reset()
    seen = [_all(run)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gradients do not exist")
        for step in range(1, steps + 1):
            with np.errstate(over="ignore"):
                run.step(row(run.cases, step, hard))
            seen.append(_all(run))
    return {
        key: Track(
            np.stack([now[key][0] for now in seen]),
            [np.stack(arrays) for arrays in zip(*(now[key][1] for now in seen[1:]), strict=True)],
            np.array([now[key][2] for now in seen[1:]]),
            np.array([now[key][3] for now in seen[1:]]),
        )
        for key in seen[0]
    }


def _all(run: Path) -> dict[tuple[str, str], Seen]:
    found = {}
    for name in run.subjects:
        for case in run.cases:
            theta, state, left, t = run.see(name, case)
            found[name, case] = theta.copy(), [a.copy() for a in state], left, t
    return found


def _flat(a: Array) -> Array:
    return np.ascontiguousarray(a).reshape(-1)
