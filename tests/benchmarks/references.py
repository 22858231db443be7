"""What the reference loops of ``meta_training.py`` share: optimizees, features, the loop of an epoch.

``reference_torch.py`` and ``reference_jax.py`` go on from here. Nothing of ``torch_impl`` or ``tf_impl`` is
used; seeds, batches and initial values are the project's, so that everybody trains on the same numbers.
Arrays are laid out [coordinate, feature or unit], as in the codes they stand for.
"""

import abc
from typing import Any

import numpy as np

from common.data import datasets
from common.rng import derived_seed
from common.tables.problems import Instance, parameter_specs, problem_row
from common.tables.teachers import TEACHERS, TeacherRow, initial_weights

META_LR = 1e-3


class Images:
    """A ReLU network of dense layers on images: its loss is the mean cross-entropy of a mini-batch.

    Attributes:
        images, labels: half A of the training images [n, pixels] as stored, and their classes.
        shapes: of w [in, out], b [out], w, b ... in the order they lie in theta [N].
    """

    def __init__(self, problem: str, data_dir: str, seed: int) -> None:
        self.row, self.data_dir, self.seed = problem_row(problem), data_dir, seed
        kinds = {layer.kind for layer in self.row.layers}
        if not {"dense", "relu"} <= kinds <= {"dense", "relu", "flatten"}:
            raise SystemExit(f"{problem}: expected dense ReLU layers for the references; try digits-mlp")
        whole = datasets.load(self.row.dataset, data_dir)
        images, self.labels = whole.split("meta_train")
        self.images = images.reshape(len(images), -1)
        self.divisor, self.offset, self.spread = whole.divisor, whole.offset, whole.spread
        self.shapes = [spec.shape for spec in parameter_specs(self.row)]

    def start(self, epoch: int) -> np.ndarray:
        """Initial parameters [N] of the optimizee of an epoch."""
        values = self._instance(epoch).initial_parameters().values()
        return np.concatenate([v.ravel() for v in values]).astype(np.float32)

    def batches(self, epoch: int, first: int, last: int) -> np.ndarray:
        """Row numbers [steps, batch] of the mini-batches of steps ``first`` to ``last`` included."""
        instance = self._instance(epoch)
        return np.stack([instance.batch_indices(step) for step in range(first, last + 1)])

    def _instance(self, epoch: int) -> Instance:
        seed = derived_seed(self.seed, "meta_train", epoch)
        return Instance(self.row, seed, "meta_train", data_dir=self.data_dir)


def features(xp: Any, row: TeacherRow, g: Any, state: Any, t: Any) -> tuple[Any, Any]:
    """Network inputs [N, F] for gradient g [N] at step t (from 1), and the state after it.

    Args:
        xp: ``torch`` or ``jax.numpy``.
        state: moving averages [N], as many as ``averages`` says.
    """
    b1, b2 = row.beta1, row.beta2
    if row.inputs == ("log_g", "clip_g"):
        log = xp.clip(xp.log(abs(g) + 1e-8) / row.p, min=-1.0)
        return xp.stack([log, xp.clip(g * float(np.exp(row.p)), min=-1.0, max=1.0)], 1), state
    m = b1 * state[0] + (1.0 - b1) * g
    if row.inputs == ("m_tilde", "g_tilde"):
        v = b2 * state[1] + (1.0 - b2) * (g * g)
        root = xp.sqrt(v / (1.0 - b2**t)) + row.eps
        return xp.stack([m / (1.0 - b1**t) / root, g / root], 1), (m, v)
    size, found, new = abs(g), [], []
    for v, p in zip(state[1:], (2, 2.5, 3), strict=True):
        v = b2 * v + (1.0 - b2) * size**p
        found.append(m / ((v / (1.0 - b2**t)) ** (1.0 / p) + 1e-8))
        new.append(v)
    return xp.stack(found, 1), (m, *new)


def averages(row: TeacherRow) -> int:
    """How many moving averages the features of a teacher carry."""
    known = {("log_g", "clip_g"): 0, ("m_tilde", "g_tilde"): 2, ("m_p2", "m_p2_5", "m_p3"): 4}
    if row.inputs not in known:
        raise SystemExit(f"{row.name}: no reference for its inputs; expected dm, rnnprop, rp_s or rp_si")
    return known[row.inputs]


class Reference(abc.ABC):
    """A loop of meta-training: an epoch is a fresh optimizee and an update after each unroll.

    Attributes:
        first: losses [T] before each step of the very first unroll, and its meta-gradient by weight name.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.row = settings, TEACHERS[settings["teacher"]]
        self.weights = initial_weights(self.row, settings["seed"])
        self.optimizee, self.number = Images(settings["problem"], settings["data_dir"], settings["seed"]), 0
        self.first: tuple[list[float], dict[str, np.ndarray]] | None = None

    def epoch(self) -> list[float]:
        """Train for ``steps`` inner steps; the loss before each."""
        steps, unroll = self.settings["steps"], self.settings["unroll"]
        at, losses = self.begin(self.optimizee.start(self.number)), []
        for step in range(0, steps, unroll):
            batches = self.optimizee.batches(self.number, step, step + unroll)
            at, found, gradient = self.update(at, batches)
            if self.first is None:
                self.first = list(map(float, found)), gradient()
            losses += list(map(float, found))
        self.number += 1
        return losses

    @abc.abstractmethod
    def begin(self, theta: np.ndarray) -> Any:
        """The position of an optimizee at the start of an epoch."""

    @abc.abstractmethod
    def update(self, at: Any, batches: np.ndarray) -> tuple[Any, Any, Any]:
        """One unroll over T + 1 batches and one step of Adam.

        Returns:
            The new position, losses [T], and a function that gives the meta-gradient by weight name.
        """
