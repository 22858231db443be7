"""The jitted scan of ``meta_training.py``: meta-training as anybody would write it in JAX.

One compiled function an unroll: ``value_and_grad`` through ``lax.scan`` over the T steps, in each of them
``value_and_grad`` of the optimizee, whose gradient enters the features behind ``stop_gradient``; optax's Adam
steps inside it too. Data stay on the device and mini-batches are gathered there by row number.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from references import META_LR, Reference, averages, features


class JaxReference(Reference):
    """The compiled unroll; ``temporaries`` is what XLA plans to allocate for it, in bytes."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        one = self.optimizee
        self.arrays = tuple(map(jnp.asarray, (one.images, one.labels)))
        self.weights = {name: jnp.asarray(w, jnp.float32) for name, w in self.weights.items()}
        self.adam = optax.adam(META_LR)
        self.moments = self.adam.init(self.weights)
        at, batches = self.begin(one.start(0)), jnp.asarray(one.batches(0, 0, settings["unroll"]))
        lowered = jax.jit(self._step).lower(self.weights, self.moments, at, batches, self.arrays)
        self.compiled = lowered.compile()
        self.temporaries = self.compiled.memory_analysis().temp_size_in_bytes

    def begin(self, theta: np.ndarray) -> tuple:
        flat = jnp.asarray(theta)
        hidden = [(jnp.zeros((len(flat), width)),) * 2 for width in self.row.lstm]
        return flat, tuple(jnp.zeros(len(flat)) for _ in range(averages(self.row))), hidden, jnp.int32(0)

    def update(self, at: tuple, batches: np.ndarray) -> tuple[tuple, np.ndarray, Any]:
        self.weights, self.moments, at, losses, grads = self.compiled(
            self.weights, self.moments, at, jnp.asarray(batches), self.arrays
        )
        return at, np.asarray(losses), lambda: {name: np.asarray(g) for name, g in grads.items()}

    def loss(self, theta: jax.Array, batch: jax.Array, arrays: tuple) -> jax.Array:
        """The optimizee's loss at theta [N] on one batch."""
        one = self.optimizee
        images, labels = arrays
        x = (images[batch].astype(jnp.float32) / one.divisor - one.offset) / one.spread
        ends = np.cumsum([np.prod(shape) for shape in one.shapes])
        parts = [p.reshape(s) for p, s in zip(jnp.split(theta, ends[:-1]), one.shapes, strict=True)]
        for w, b in zip(parts[:-2:2], parts[1:-2:2], strict=True):
            x = jax.nn.relu(x @ w + b)
        logits = x @ parts[-2] + parts[-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

    def network(self, weights: dict[str, jax.Array], x: jax.Array, hidden: list) -> tuple[jax.Array, list]:
        """Output [N] for inputs [N, F], and the new state."""
        if self.row.pre:
            x = jax.nn.elu(x @ weights["pre/w"].T + weights["pre/b"])
        new = []
        for layer, (h, c) in enumerate(hidden):
            # One product is about a tenth faster than two.
            w = jnp.hstack([weights[f"lstm_{layer}/w_input"], weights[f"lstm_{layer}/w_hidden"]])
            gates = jnp.hstack([x, h]) @ w.T + weights[f"lstm_{layer}/bias"]
            i, f, g, o = jnp.split(gates, 4, 1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            x = jax.nn.sigmoid(o) * jnp.tanh(c)
            new.append((x, c))
        out = (x @ weights["out/w"].T + weights["out/b"])[:, 0]
        return (jnp.tanh(out) if self.row.output == "tanh" else out), new

    def _unrolled(self, weights: dict[str, jax.Array], at: tuple, batches: jax.Array, arrays: tuple) -> tuple:
        def step(at: tuple, batch: jax.Array) -> tuple[tuple, jax.Array]:
            theta, moving, hidden, t = at
            loss, g = jax.value_and_grad(self.loss)(theta, batch, arrays)
            x, moving = features(jnp, self.row, lax.stop_gradient(g), moving, t + 1)
            out, hidden = self.network(weights, x, hidden)
            return (theta + self.row.scale * out, moving, hidden, t + 1), loss

        at, losses = lax.scan(step, at, batches[:-1])
        return losses.sum() + self.loss(at[0], batches[-1], arrays), (at, losses)

    def _step(self, weights: dict, moments: Any, at: tuple, batches: jax.Array, arrays: tuple) -> tuple:
        run = jax.value_and_grad(self._unrolled, has_aux=True)
        (_, (at, losses)), grads = run(weights, at, batches, arrays)
        updates, moments = self.adam.update(grads, moments)
        return optax.apply_updates(weights, updates), moments, at, losses, grads
