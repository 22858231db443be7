"""What the layers of a model say of its variables: their matrix views, and whether weights decay.

Keras gives an optimizer variables without their layers, so a user hands over what the layers say, by the
paths of variables: ``SymbolicOptimizer(rule, **per_layer(model, weight_decay=0.01))``.
"""

import abc
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras

from common.errors import L2OError
from interchange.language.view import View, canonical, chosen, matrix, vector
from tf_impl.optimizers.base import LearningRate
from tf_impl.optimizers.guard import GuardedOptimizer, NonFinite
from tf_impl.optimizers.loading import find, path_of

_TRANSPOSED = tuple(getattr(keras.layers, f"Conv{n}DTranspose") for n in (1, 2, 3))
_CONVOLUTIONS = tuple(getattr(keras.layers, f"Conv{n}D") for n in (1, 2, 3))
_NORMS = ("Batch", "Layer", "Group", "RMS", "Unit")
_SCALES = (*(getattr(keras.layers, f"{kind}Normalization") for kind in _NORMS), keras.layers.PReLU)
_LOOKED_UP = (keras.layers.Embedding, keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
# Keras' own names of variables that are no matrices, though biases of attention have two axes.
_NAMES = ("bias", "embeddings", "reverse_embeddings")


def views(model: keras.Layer) -> dict[str, View]:
    """The view of every trainable variable of a built model, by its path: one row for every output.

    Dense layers and convolutions have rows along the last axis, transposed ones along the last but one,
    grouped ones a matrix for each group, EinsumDense those axes that its equation puts out. Embeddings,
    depthwise kernels, biases, normalizations and matrices of one row or column have no view.

    Raises:
        L2OError: the model is not built, or two variables of one path are not seen alike.
    """
    found: dict[str, View] = {}
    for layer, variable in _owned(model):
        view = _of_layer(layer, variable)
        if found.setdefault(variable.path, view) != view:
            raise L2OError(f"expected one variable called {variable.path}, got two; name their layers")
    return found


def per_layer(model: keras.Layer, weight_decay: float | None = None) -> dict[str, Any]:
    """Options of ``SymbolicOptimizer`` for a built model: ``views``, and weight decay of weights alone.

    Biases, scales and shifts of normalizations, and whatever has no two axes, do not decay.
    """
    undecayed = [v.path for layer, v in _owned(model) if not _decays(layer, v)]
    return {"views": views(model), "weight_decay": weight_decay, "undecayed": undecayed}


def _owned(model: keras.Layer) -> Iterator[tuple[keras.Layer, keras.Variable]]:
    if not model.built:
        raise L2OError(f"{model.name}: expected a built model; call build(input_shape), or give it an Input")
    for layer in model._flatten_layers():
        yield from ((layer, v) for v in layer._trainable_variables)


def _decays(layer: keras.Layer, variable: keras.Variable) -> bool:
    return len(variable.shape) > 1 and variable.name != "bias" and not isinstance(layer, _SCALES)


def _of_layer(layer: keras.Layer, variable: keras.Variable) -> View:
    shape = tuple(variable.shape)
    if isinstance(layer, _SCALES + _LOOKED_UP):
        return vector(shape)
    kernel = variable.name == "kernel"
    if kernel and isinstance(layer, keras.layers.EinsumDense):
        view = _of_equation(shape, layer.equation)
    elif kernel and isinstance(layer, _TRANSPOSED):
        view = matrix(shape, (-2,))
    elif kernel and isinstance(layer, _CONVOLUTIONS) and layer.groups > 1:
        view = vector(shape) if shape[-2] == 1 else matrix(shape, (-1,), parts=layer.groups)
    else:
        view = _usual(variable)
    return view if min(view.sizes["rows"], view.sizes["cols"]) > 1 else vector(shape)


def _of_equation(shape: tuple[int, ...], equation: str) -> View:
    """Axes put out are the rows; those that are taken in as well number matrices."""
    given, kernel, put_out = equation.replace("->", ",").replace(" ", "").split(",")
    kinds = [(letter in put_out) + 2 * (letter in given) for letter in kernel]
    rows, parts = (tuple(k - len(shape) for k, own in enumerate(kinds) if own == kind) for kind in (1, 3))
    return View(shape, shape, rows, parts, matrix=True) if rows else vector(shape)


def seen_as(views: Sequence[View], variables: Iterable[Any]) -> dict[str, View]:
    """Views of variables by their names."""
    return {v.name.partition(":")[0]: view for v, view in zip(variables, views, strict=True)}


def _usual(variable: Any) -> View:
    """The view where nothing is known but the variable: rows along the last axis."""
    shape, path = tuple(variable.shape), path_of(variable)
    known = path.rpartition("/")[2] in _NAMES or "depthwise" in path
    return vector(shape) if known else canonical(shape)


def of_variables(options: Mapping[str, Any], variables: Sequence[Any]) -> list[View]:
    """The view of every variable: what is said of its path, or rows along the last axis.

    Args:
        options: path -> a view, or what ``view.chosen`` takes: True, False, or axes of rows and columns.

    Raises:
        L2OError: an option does not fit its variable, or names none while others are not named.
    """
    found, used = [], set()
    missing = ""
    for variable in variables:
        path, shape = path_of(variable), tuple(variable.shape)
        fitting = find(options, path)
        used.update(fitting)
        given = [options[name] for name in fitting]
        option = given[0] if given else None
        if any(other != option for other in given):
            raise L2OError(f"views: expected one of {path}, got those of {', '.join(fitting)}")
        if isinstance(option, View) and option.shape != shape:
            raise L2OError(f"views: expected one of shape {shape} for {path}, got {option.shape}")
        missing = missing or path * (not given and len(shape) > 1)
        usual = _usual(variable)
        found.append(option if isinstance(option, View) else chosen(shape, option, usual))
    if missing and (unknown := options.keys() - used):
        raise L2OError(
            f"views: expected paths of variables such as {missing}, got {min(unknown)}; "
            "make them anew, by views(model)"
        )
    return found


def by_step_size(variables: Sequence[Any], sizes: Mapping[str, float]) -> list[float]:
    """The step size of every variable; 1 for all without any.

    Args:
        sizes: by path, or the end of it.

    Raises:
        L2OError: a variable has none.
    """
    found = [sizes[name] for v in variables if len(fits := find(sizes, path_of(v))) == 1 for name in fits]
    if sizes and len(found) < len(variables):
        known = f"{', '.join(list(sizes)[:6])}{', ...' * (len(sizes) > 6)}"
        unknown = next(path_of(v) for v in variables if len(find(sizes, path_of(v))) != 1)
        raise L2OError(
            f"variables: expected the paths that there are step sizes for ({known}), got {unknown!r}; rename "
            "them in step_sizes, or tune on this model"
        )
    return found or [1.0] * len(variables)


def given(options: Mapping[str, Any] | keras.Layer | None) -> dict[str, Any]:
    """What a user says of views: a model's, or by path; views of a configuration are views again."""
    if isinstance(options, keras.Layer):
        return views(options)
    kept = dict(options or {})
    for path, option in kept.items():
        if isinstance(option, Mapping):
            kept[path] = View(**{k: x if isinstance(x, bool) else tuple(x) for k, x in option.items()})
        elif isinstance(option, list):
            kept[path] = tuple(tuple(x) if isinstance(x, list) else x for x in option)
    return kept


def to_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``given``, JSON-ready."""
    return {path: _plain(option) for path, option in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, View):
        return {name: _plain(x) for name, x in dataclasses.asdict(value).items()}
    return [_plain(x) for x in value] if isinstance(value, tuple | list) else value


class LayeredOptimizer(GuardedOptimizer, abc.ABC):
    """What sees tensors as the layers of a model say, and spares those of weight decay that they name.

    Args:
        views, undecayed: as for ``SymbolicOptimizer``.
    """

    def __init__(
        self,
        learning_rate: LearningRate,
        weight_decay: float | None,
        nonfinite: NonFinite,
        views: Mapping[str, Any] | keras.Layer | None,
        undecayed: Sequence[str],
        **keywords: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, nonfinite, **keywords)
        # Past Keras' tracking, which wraps dictionaries and lists.
        vars(self).update(views=given(views), undecayed=list(undecayed))

    @abc.abstractmethod
    def _sees_tensors(self) -> bool:
        """Whether coordinates ask for others."""

    def _prepare(self, variables: Sequence[keras.Variable]) -> None:
        spared = {k for k, v in enumerate(variables) if find(self.undecayed, path_of(v))}
        sizes = by_step_size(variables, self._step_sizes())
        vars(self).update(_places=of_variables(self.views, variables), _spared=spared, _sizes=sizes)

    @abc.abstractmethod
    def _step_sizes(self) -> Mapping[str, float]:
        """Of the variables by their paths; empty where they have none of their own."""

    def _step_size(self, k: int) -> float:
        return self._sizes[k]

    def _view(self, k: int) -> View | None:
        return self._places[k] if self._sees_tensors() else None

    def _use_weight_decay(self, variable: keras.Variable) -> bool:
        spared = self._get_variable_index(variable) in self._spared
        return not spared and super()._use_weight_decay(variable)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"views": to_config(self.views), "undecayed": self.undecayed}
