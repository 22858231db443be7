"""Compiled programs run as torch code, one step at a time."""

import math
from collections.abc import Mapping

import torch

from interchange.language.compiler import Program
from interchange.language.view import FULL, View
from torch_impl.networks.compiled import transformed
from torch_impl.networks.matrix import TENSOR
from torch_impl.networks.operators import OPERATORS, as_tensor

Scalar = float | torch.Tensor


def _one_minus_power(b: Scalar, t: Scalar) -> Scalar:
    """1 - b**t in float64, without cancellation for b near 1."""
    tensors = [value for value in (t, b) if isinstance(value, torch.Tensor)]
    if not tensors:
        return -math.expm1(t * math.log(b))
    where = {"dtype": torch.float64, "device": tensors[0].device}
    return -torch.expm1(torch.as_tensor(t, **where) * torch.log(torch.as_tensor(b, **where)))


def _unbiased(average: Scalar, factor: Scalar) -> Scalar:
    """average / factor."""
    if not torch.compiler.is_compiling() or not isinstance(factor, torch.Tensor):
        return average / factor
    # The sum of one number is something inductor keeps; else it forms the power anew for every few elements.
    return average * (1.0 / factor).reshape(1).cumsum(0).reshape(())


def _reshaped(x: Scalar, shape: tuple[int, ...], to: tuple[int, ...]) -> Scalar:
    """An array [..., *shape] as [..., *to]; numbers, and state of another shape, as they are."""
    n = len(shape)
    if shape == to or not isinstance(x, torch.Tensor) or tuple(x.shape[x.dim() - n :]) != shape:
        return x
    return x.reshape(*x.shape[: x.dim() - n], *to)


def _of_tensor(op: str, x: Scalar, view: View, like: torch.Tensor) -> torch.Tensor:
    """A tensor operator on a value; a tensor without elements has values that broadcast to nothing."""
    if op in ("polar", "orth"):
        x = as_tensor(x).to(like.dtype).expand(like.shape)
    if isinstance(x, torch.Tensor) and not x.numel():
        x = x.new_zeros([max(1, n) for n in x.shape])
    return TENSOR[op](x, view.axes)


class Lowered:
    """A program as a pure function of inputs, state and step count.

    Values keep the dtype of the arrays put in; constants are Python floats or 0-dim float64 tensors,
    so 1 - b is formed in float64 whatever the arrays' dtype (FORMATS.md section 3, Numbers).
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._spent = program.spent()

    def initial_state(self, like: torch.Tensor, view: View | None = None) -> tuple[torch.Tensor, ...]:
        """One zero array per state slot, as ``like``; with a view, those of rows as small as they are."""
        if view is None:
            return tuple(torch.zeros_like(like) for _ in self.program.writes)
        lead = like.shape[: like.dim() - len(view.shape)]
        return tuple(
            torch.zeros_like(like) if kind == FULL else like.new_zeros((*lead, *view.reduced(kind)))
            for kind in self.program.slot_kinds
        )

    def step(
        self,
        inputs: Mapping[str, Scalar],
        state: tuple[torch.Tensor, ...],
        t: Scalar,
        view: View | None = None,
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """One step.

        Args:
            inputs: every name the program reads but ``t``; arrays of one shape, constants 0-dim.
            state: one array per slot.
            t: the number of this step, from 1.
            view: of the tensor that the arrays are, which programs that see tensors need; the arrays may have
                leading axes (lanes).

        Returns:
            The program's outputs and the new state.
        """
        if view is None:
            return self._step(inputs, state, t, None)
        inputs = {n: _reshaped(x, view.shape, view.split) for n, x in inputs.items()} | view.sizes
        split = tuple(_reshaped(s, view.shape, view.split) for s in state)
        outputs, new_state = self._step(inputs, split, t, view)
        outputs = tuple(_reshaped(out, view.split, view.shape) for out in outputs)
        return outputs, tuple(new.reshape(old.shape) for new, old in zip(new_state, state, strict=True))

    def _step(
        self, inputs: Mapping[str, Scalar], state: tuple[torch.Tensor, ...], t: Scalar, view: View | None
    ) -> tuple[tuple[Scalar, ...], tuple[torch.Tensor, ...]]:
        """``step`` of arrays in the shape that the view looks at."""
        values: list[Scalar | None] = []
        for ins, spent in zip(self.program.instructions, self._spent, strict=True):
            args = [values[i] for i in ins.args]
            if ins.op == "input":
                value = t if ins.name == "t" else inputs[ins.name]
            elif ins.op == "number":
                value = ins.value
            elif ins.op == "read":
                value = state[ins.slot]
            elif ins.op == "ema":
                x, b, rest = args if len(args) == 3 else (*args, 1.0 - args[1])
                kept, new = self._apply("mul", b, state[ins.slot]), self._apply("mul", rest, x)
                value = self._apply("add", kept, new)
            elif ins.op == "unbias":
                value = _unbiased(*self._matched(args[0], _one_minus_power(args[1], t)))
            elif ins.op == "cumsum":
                value = self._apply("add", state[ins.slot], args[0])
            elif ins.op == "cummax":
                value = self._apply("max", state[ins.slot], args[0])
                if isinstance(t, torch.Tensor):
                    value = torch.where(t == 1, args[0], value)
                elif t == 1:
                    value = args[0]
            elif ins.op in TENSOR:
                value = _of_tensor(ins.op, args[0], view, inputs["g"])
            else:
                value = self._apply(ins.op, *args)
            values.append(value)
            for register in spent:  # of a large tensor each is much memory
                values[register] = None
        outputs = tuple(values[i] for i in self.program.outputs)
        new_state = tuple(
            self._kept(i, values[i], old) for i, old in zip(self.program.writes, state, strict=True)
        )
        return outputs, new_state

    def _apply(self, operator: str, *args: Scalar) -> Scalar:
        if operator == "sqrt" and not (torch.is_grad_enabled() or transformed()):
            # The rest of it is for derivatives at 0.
            return torch.sqrt(torch.abs(as_tensor(args[0])))
        return OPERATORS[operator](*self._matched(*args))

    def _matched(self, *args: Scalar) -> tuple[Scalar, ...]:
        return args

    def _kept(self, register: int, value: Scalar, old: torch.Tensor) -> torch.Tensor:
        """A value as state: like ``old``, and a copy where the caller may change it in place later."""
        kept = torch.as_tensor(value, dtype=old.dtype, device=old.device).expand_as(old)
        return kept.clone() if self.program.instructions[register].op == "input" else kept


class LoweredBatched(Lowered):
    """A program that also runs in lanes: arrays [lane, N], and constants of every lane, [lane, 1] float64.

    A constant takes the dtype of the array it meets, as a 0-dim one does of itself.
    """

    def _matched(self, *args: Scalar) -> tuple[Scalar, ...]:
        found = [a.dtype for a in args if isinstance(a, torch.Tensor) and a.dim()]
        if len(set(found)) < 2:
            return args
        dtype = min(found, key=lambda dtype: dtype.itemsize)
        return tuple(a.to(dtype) if isinstance(a, torch.Tensor) and a.dim() else a for a in args)
