"""TensorFlow's second-order meta-gradient; see ``tests/backends/test_second_order.py``."""

import numpy as np
import pytest

from common.tables.teachers import TEACHERS, initial_weights
from interchange.protocols import Position, State

tf = pytest.importorskip("tensorflow")

from tf_impl.meta.second_order import step_back  # noqa: E402
from tf_impl.networks.teacher import TeacherNetwork  # noqa: E402


def test_two_arrays_of_state_may_be_one_tensor():
    network = TeacherNetwork(TEACHERS["rp_s"], initial_weights(TEACHERS["rp_s"], 1), tf.float64)
    g = tf.constant([0.3, -0.2], tf.float64)
    by, found = tf.ones([7, 2], tf.float64), []
    for copied in (tf.identity, lambda a: a):
        features, hidden = network.initial_state(g).features, tf.fill([7, 2], tf.constant(0.1, tf.float64))
        state = State(3, features, (hidden, copied(hidden)))
        by_state = State(3, features, (by, by))
        found.append(step_back(network, None, Position(3, g, state, None, g), g, by_state)[2].network)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
