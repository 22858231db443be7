"""Any ``nn.Module`` with a loss as an optimizee."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from interchange.language.view import outputs_first
from interchange.meta.tasks import Batches, chosen_views
from torch_impl.tensors import unflatten


class ModuleTask:
    """Any model with a loss as an optimizee.

    Args:
        module: the model; its trainable parameters' current values are the start. It is not changed, except
            that layers with buffers (batch norm) update them as in training.
        loss: ``loss(module_output, target)``, 0-dim.
        batches: the mini-batches, each ``(input, target)``, in turn: those of a list are repeated, a
            ``DataLoader`` is run through anew at every pass.
        matrix: how rules see the parameters: True, False or (axes of rows, axes of columns), for all or by
            name; a parameter of which nothing is said is a matrix with rows along axis 0, or a vector.
        test: mini-batches of its test data, for ``optimize`` and ``evaluate``.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Callable[[Any, Any], torch.Tensor],
        batches: Iterable[tuple[Any, Any]],
        matrix: object = None,
        test: Iterable[tuple[Any, Any]] = (),
    ) -> None:
        self.module, self._loss, self._batches, self._test = module, loss, Batches(batches), test
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not parameters:
            raise ValueError("module: expected a parameter that requires a gradient, got none")
        self.names = tuple(parameters)
        self.shapes = tuple(tuple(p.shape) for p in parameters.values())
        self.views = chosen_views(self.names, list(map(outputs_first, self.shapes)), matrix)

    @property
    def buffers(self) -> dict[str, torch.Tensor]:
        """What of the model is not trained, running values of batch norm for instance."""
        return dict(self.module.named_buffers())

    def initial(self) -> torch.Tensor:
        """The module's current parameters, a flat vector [N]."""
        return torch.cat([self.module.get_parameter(name).detach().reshape(-1) for name in self.names])

    def loss(self, parameters: list[torch.Tensor], step: int) -> torch.Tensor:
        """The loss, 0-dim, on the mini-batch of ``step``, counted round."""
        inputs, target = self._batches.at(step)
        return self._loss(self._output(parameters, inputs), target)

    def test_scores(self, theta: torch.Tensor) -> tuple[float, float]:
        """Mean loss over the test mini-batches, and the share of labels that have the highest score.

        nan where there are none; labels are integers [batch] beside outputs [batch, classes].
        """
        losses, right, labels, was = [], 0, 0, self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                for inputs, target in self._test:
                    output = self._output(unflatten(theta, self.shapes), inputs)
                    losses.append(float(self._loss(output, target)))
                    if output.dim() == 2 and target.dim() == 1 and not target.is_floating_point():
                        right, labels = right + int((output.argmax(1) == target).sum()), labels + len(target)
        finally:
            self.module.train(was)
        mean = sum(losses) / len(losses) if losses else math.nan
        return mean, right / labels if labels else math.nan

    def _output(self, parameters: list[torch.Tensor], inputs: Any) -> Any:
        named = dict(zip(self.names, parameters, strict=True))
        return torch.func.functional_call(self.module, named, (inputs,))
