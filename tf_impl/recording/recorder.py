"""Record a training loop of one's own, which stays as it is: ``recorder = Recorder(optimizer)`` before the
loop, ``recorder.save("trajectories.h5")`` after it.
"""

import logging
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from common.errors import L2OError
from interchange.files.recording import Recording
from tf_impl.networks.features import FeatureStream
from tf_impl.recording.hooks import Watch, one_number
from tf_impl.tensors import CREATED_BY, to_numpy

_log = logging.getLogger(__name__)


class _Callback(keras.callbacks.Callback):
    """A callback that does nothing but make ``fit`` trace its step anew."""

    def on_train_begin(self, logs: Any = None) -> None:
        """A step traced before the recorder was there would go on without it."""
        self.model.make_train_function(force=True)


class Recorder(_Callback, Recording):
    """Records what any Keras optimizer sees and does, in ``fit`` or a loop of one's own, as a file.

    Args:
        optimizer: a fresh one: features are recorded as starting from zero.
        features: names of the table, such as ``g+m_tilde+g_tilde`` (with a teacher's usual decays), or
            name -> expression over ``g`` and ``t``.
        coordinates: how many of a run, in equal shares from every parameter tensor that has a gradient at
            the first step.
        steps: of a run that are recorded, its first ones.
        problem: a name for what is optimized.
        seed: of the choice of coordinates.
        include_lr: leave the learning rate in y, so that a schedule is part of what is distilled.
        whole_tensors: of as many tensors as ``coordinates`` reaches for, every coordinate, and how rules see
            them, so that a rule that sees tensors can be evaluated on the file (interchange.files.whole).

    It is made before the optimizer's first step; given to ``fit`` as a callback it may be made later. The
    gradient is the one of ``update_step``, so clipped, unscaled and accumulated as it may be. y is (theta
    after - theta before) / lr: weight decay and constraints are in it, and theta's rounding; it is 0 where
    the optimizer left a coordinate alone. theta and lr are recorded beside it. A run ends before its first
    gradient, feature, output or loss that is not finite, and its ``outcome`` says so. A tensor that loses its
    gradient is left out of the run. Places count in Keras' own layout, which for the kernels of dense layers
    and convolutions is the canonical one.
    """

    _WHEN = "the Recorder before the first step, or fit with it as a callback"

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        *,
        features: str | Mapping[str, str] = "g",
        coordinates: int = 100,
        steps: int = 300,
        problem: str = "user",
        seed: int = 0,
        include_lr: bool = False,
        whole_tensors: bool = False,
    ) -> None:
        _Callback.__init__(self)
        Recording.__init__(
            self, features, coordinates, steps, problem, seed, include_lr, whole_tensors, CREATED_BY
        )
        self._watch: Watch | None = None
        self.start_run(optimizer)

    def start_run(self, optimizer: keras.optimizers.Optimizer) -> None:
        """End the run so far and begin another, with the fresh optimizer of a fresh model."""
        self._end_run()
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise L2OError(f"expected a Keras optimizer to record, got {type(optimizer).__name__}")
        if int(optimizer.iterations):
            _log.warning("the optimizer has taken steps already; features are recorded as starting from zero")
        self._watch = Watch(
            optimizer,
            self._coordinates,
            self._steps,
            self._seed,
            len(self._runs),
            self._include_lr,
            self._whole,
        )

    def loss(self, value: float | tf.Tensor) -> None:
        """The loss of the optimizer's next step; one that ``fit`` computes need not be given.

        A step without one takes the last given, the first steps the first. Where none is ever given, zeros
        are written and the run's ``outcome`` says so.
        """
        if self._watch is not None:
            self._watch.loss.assign([one_number(value), 1.0])

    def _end_run(self) -> None:
        watch, self._watch = self._watch, None
        if watch is None:
            return
        watch.end()
        if watch.recorded:
            arrays, losses, given = watch.arrays()
            self._keep(arrays, losses, given, watch.source, watch.places())

    def _inputs(self, g: np.ndarray) -> np.ndarray:
        stream = FeatureStream(self._features)
        x, state = [], stream.initial_state(tf.constant(g[0]))
        for t, row in enumerate(g, 1):
            values, state = stream.step(tf.constant(row), state, t)
            x.append(to_numpy(values).T)
        return np.stack(x)
