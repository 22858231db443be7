"""Programs of rules and features as compiled code on tensors of the CPU (``common.kernels``)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from common.kernels import RuleCode, addresses, rule_code
from interchange.emit.c_kernels import Source, roll_source, step_source, tangents_source, vjp_source
from interchange.language.compiler import Program
from torch_impl.threads import threads

_Tensor = torch.Tensor
_OWN = (_Tensor, torch.nn.Parameter)
_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class Compiled:
    """A program's rollouts and derivatives for vectors.

    Args:
        inputs: the program's inputs that are rows of arrays, in order; all others but ``t`` are constants.
    """

    def __init__(self, program: Program, inputs: Sequence[str]) -> None:
        self._program, self._inputs = program, tuple(inputs)

    def roll(
        self, x: _Tensor, state: Sequence[_Tensor], constants: Mapping[str, float], t: int
    ) -> tuple[_Tensor, tuple[_Tensor, ...]] | None:
        """Outputs [O, N] and new state for inputs x [F, N] at step ``t`` (from 1).

        None where there is no compiled code.
        """
        return self.roll_batched(x, state, [constants], t)

    def roll_batched(
        self, x: _Tensor, state: Sequence[_Tensor], constants: Sequence[Mapping[str, float]], t: int
    ) -> tuple[_Tensor, tuple[_Tensor, ...]] | None:
        """``roll`` with constants of its own for each of as many equal parts of the coordinates."""
        code = self._code(x, state, lambda: roll_source(self._program, self._inputs))
        if code is None:
            return None
        x, before = x.contiguous(), [a.contiguous() for a in state]
        out = x.new_empty(len(self._program.outputs), x.shape[1])
        after = tuple(torch.empty_like(a) for a in before)
        n = x.shape[1] // len(constants)
        for k, values in enumerate(constants):
            shift = k * n * x.element_size()
            code.roll(
                n, x.data_ptr() + shift, [a + shift for a in _addresses(before)],
                [a + shift for a in _addresses(after)], out.data_ptr() + shift,
                [values[name] for name in code.constants], t, threads(), x.shape[1], x.shape[1],
            )  # fmt: skip
        return out, after

    def tangents(
        self,
        x: _Tensor,
        state: Sequence[_Tensor],
        moved: Sequence[_Tensor],
        constants: Mapping[str, float],
        seeds: Mapping[str, float],
        t: int,
        keep: float,
        rate: float,
    ) -> list[_Tensor] | None:
        """Derivatives by constants one step on, in place as far as they can be; None without compiled code.

        Args:
            x: inputs [F, N]; state: before the step.
            moved: for every constant of ``seeds`` of theta [N], and of the slots that it moves.
            seeds: constant -> its derivative by what is trained.
            keep, rate: those of theta become keep * E + rate * d out / d constant.
        """
        wrt = tuple(seeds)
        code = self._code(x, state, lambda: tangents_source(self._program, self._inputs, wrt))
        if code is None or any(a.dtype != x.dtype or a.shape != x.shape[1:] for a in moved):
            return None
        arrays = [a if a.is_contiguous() else a.contiguous() for a in moved]
        x, before = x.contiguous(), [a.contiguous() for a in state]
        code.tangents(
            x.shape[1], x.data_ptr(), _addresses(before), _addresses(arrays),
            [constants[name] for name in code.constants], tuple(seeds.values()), t, keep, rate, threads(),
        )  # fmt: skip
        return arrays

    def vjp(
        self,
        x: _Tensor,
        c: _Tensor,
        state: Sequence[_Tensor],
        constants: Mapping[str, float],
        before: int,
    ) -> dict[str, float] | None:
        """sum_t <c_t, d out_t / d constant> for every constant the program reads; None without compiled code.

        Args:
            x: inputs [T, F, N]; c: [T, N].
            state: before the first step, after ``before`` steps.
        """
        wrt = tuple(name for name in constants if name in self._program.inputs)
        code = self._code(x, state, lambda: vjp_source(self._program, self._inputs, wrt))
        if code is None or c.dtype != x.dtype or not wrt:
            return {} if code is not None and not wrt else None
        x, c, start = x.contiguous(), c.contiguous(), [a.contiguous() for a in state]
        found = code.vjp(
            c.shape[1], len(c), x.data_ptr(), c.data_ptr(), _addresses(start),
            [constants[name] for name in code.constants], before, len(wrt), threads(),
        )  # fmt: skip
        # In the dtype of the arrays: what is too large for it is infinite, which ends an epoch, as without C.
        return dict(zip(wrt, torch.from_numpy(found).to(x.dtype).tolist(), strict=True))

    def _code(self, x: _Tensor, state: Sequence[_Tensor], source: Callable[[], Source]) -> RuleCode | None:
        """The code for these arrays; None where there is none, or where autograd may look."""
        name = _NAMES.get(x.dtype)
        plain = type(x) is _Tensor and x.device.type == "cpu" and not transformed()
        if (
            x.shape[-2] != len(self._inputs)
            or name not in ("float32", "float64")
            or not plain
            or any(a.dtype != x.dtype or a.numel() != x.shape[-1] for a in state)
        ):
            return None
        if torch.is_grad_enabled() and (x.requires_grad or any(a.requires_grad for a in state)):
            return None
        return rule_code(source(), name)


def transformed() -> bool:
    """Whether others have to see operations: compiling, vmap, jvp, grad, forward mode, dispatch modes."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _addresses(tensors: Sequence[_Tensor]) -> list[int]:
    return [a.data_ptr() for a in tensors]


class Steps:
    """Steps in place, theta <- keep * theta + rate * scale * u, of the parameters of a group.

    Whether code can be given their addresses is looked at once, and again when one of them has changed.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._seen: _Seen | None = None

    def again(
        self, params: list[_Tensor], states: Mapping[_Tensor, Mapping[str, _Tensor]], **how: Any
    ) -> bool:
        """A step like the one before; False, and nothing is done, where something is not as it was then."""
        seen, grads = self._seen, [p.grad for p in params]
        if (
            seen is None
            or transformed()
            or not seen.fits(params, grads, states)
            or (code := self._code(seen.dtype)) is None
        ):
            return False
        self._run(code, params, seen.sizes, [g.data_ptr() for g in grads], seen.thetas, seen.kept, **how)
        return True

    def step(self, tensors: Sequence[list[_Tensor]], **how: Any) -> list[int]:
        """A step; the numbers of the parameters that were not taken.

        Args:
            tensors: parameters, gradients, steps taken (0-dim float32), coordinates left alone (0-dim int64)
                and the arrays of state, those of each parameter in turn. Taken are dense parameters on the
                CPU whose arrays all lie in memory alike.
            how: as ``RuleCode.step`` has it.
        """
        params, grads, steps, skipped, arrays = tensors
        if transformed():
            return list(range(len(params)))
        slots, rest = len(self._program.writes), []
        jobs: dict[torch.dtype, list[int]] = {}
        for k, p in enumerate(params):
            state = arrays[k * slots : (k + 1) * slots]
            fits = type(p) in _OWN and p.is_cpu and p.dtype in _NAMES
            if fits and _fits(p, grads[k], steps[k], skipped[k], state):
                jobs.setdefault(p.dtype, []).append(k)
            else:
                rest.append(k)
        for dtype, numbers in jobs.items():
            if (code := self._code(dtype)) is None:
                rest += numbers
                continue
            rows = [(steps[k], skipped[k], *arrays[k * slots : (k + 1) * slots]) for k in numbers]
            taken, kept = [params[k] for k in numbers], [a.data_ptr() for row in rows for a in row]
            sizes, thetas = [p.numel() for p in taken], _addresses(taken)
            self._run(code, taken, sizes, [grads[k].data_ptr() for k in numbers], thetas, kept, **how)
            if not rest and len(jobs) == 1 and all(map(_Tensor.is_contiguous, taken)):
                self._seen = _Seen(dtype, sizes, thetas, kept)
        return sorted(rest)

    def _code(self, dtype: torch.dtype) -> RuleCode | None:
        return rule_code(step_source(self._program), _NAMES[dtype])

    @staticmethod
    def _run(
        code: RuleCode,
        params: list[_Tensor],
        sizes: Sequence[int],
        grads: Sequence[int],
        thetas: Sequence[int],
        kept: Sequence[int],
        constants: Mapping[str, float],
        **how: Any,
    ) -> None:
        values = [constants[name] for name in code.constants]
        code.step(sizes, thetas, grads, kept, values, threads=torch.get_num_threads(), **how)
        # Autograd is told what it could not see, as of any operation in place.
        torch.autograd.graph.increment_version(params)


class _Seen:
    """Contiguous parameters of one dtype, all of a group's, as they were at a step."""

    def __init__(self, dtype: torch.dtype, sizes: list[int], thetas: list[int], kept: list[int]) -> None:
        self.dtype, self.sizes, self._thetas, self._kept = dtype, sizes, thetas, kept
        self.thetas, self.kept = addresses(thetas), addresses(kept)

    def fits(
        self,
        params: list[_Tensor],
        grads: list[_Tensor],
        states: Mapping[_Tensor, Mapping[str, _Tensor]],
    ) -> bool:
        """Whether all addresses are those seen, and the gradients such as code can be given.

        Comprehensions over all tensors: with hundreds of small ones a look at each costs more than its step.
        """
        if {type(g) for g in grads} != {_Tensor} or {g.layout for g in grads} != {torch.strided}:
            return False
        own = len(self._kept) // len(params)  # a wrapper's, such as Lookahead's, come after them
        return (
            {g.dtype for g in grads} == {p.dtype for p in params} == {self.dtype}
            and {g.is_cpu for g in grads} == {True}
            and not any(map(_Tensor.is_neg, (*grads, *params)))
            and all(map(_Tensor.is_contiguous, grads))
            and all(map(_Tensor.is_contiguous, params))
            and [p.numel() for p in params] == self.sizes == [g.numel() for g in grads]
            and [p.data_ptr() for p in params] == self._thetas
            and [a.data_ptr() for p in params for a in islice(states[p].values(), own)] == self._kept
        )


def _fits(p: _Tensor, g: _Tensor, step: _Tensor, skips: _Tensor, state: Sequence[_Tensor]) -> bool:
    """Whether compiled code may be given these addresses; it believes what it is told of them."""
    dtype, size = p.dtype, p.numel()
    work = torch.float64 if dtype is torch.float64 else torch.float32
    if type(g) is not _Tensor or g.dtype is not dtype or g.numel() != size or g.is_neg() or p.is_neg():
        return False
    if step.dtype is not torch.float32 or skips.dtype is not torch.int64 or not step.is_cpu:
        return False
    if p.is_contiguous():
        if not g.is_contiguous():
            return False
        for a in state:  # noqa: SIM110 - all() of a generator takes longer than the checks
            if a.dtype is not work or a.numel() != size or not a.is_contiguous():
                return False
        return True
    shape, strides = p.shape, p.stride()
    return _dense(p) and all(
        a.stride() == strides and a.shape == shape and a.dtype is kind
        for a, kind in ((g, dtype), *((a, work) for a in state))
    )


def _dense(x: _Tensor) -> bool:
    """Whether the elements fill their memory without holes or overlaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
