"""A rule as one standalone torch file: constants, ``init``, pure ``update``, ``torch.optim.Optimizer``."""

from interchange.emit.source import (
    branches,
    constant,
    copied_source,
    header,
    pointwise_operators,
    sight,
    steps,
    tensor_operators,
)
from interchange.language.equation import Equation
from interchange.language.execute import Instruction
from interchange.language.operators import TENSOR

_INFIX = {"add": "+", "sub": "-", "mul": "*"}

_FILE = '''"""An optimizer that is one equation, in PyTorch.

    optimizer = RuleOptimizer(model.parameters(), lr=1.0)

or, as pure functions (differentiable, also by ``constants``):

    state = init(theta)
    u, state = update(g, state, theta)
    theta = theta + lr * u
"""

import warnings

import torch

{header}


{functions}def one_minus_power(b, t):
    """1 - b**t in float64, without cancellation for b near 1."""
    return -torch.expm1(t * torch.log(as_tensor(b)))


def init(theta{parameter}):
    """Zero state for one parameter tensor; float32 at least{told}."""
    dtype = torch.promote_types(theta.dtype, torch.float32)
{axes}    slots = tuple({zeros})
    return {{"t": torch.zeros((), dtype=torch.int64, device=theta.device), "slots": slots}}


def update(g, state, theta, constants=CONSTANTS{parameter}):
    """One step from the gradient ``g``: the update u, to be scaled by a learning rate, and the new state.

    Constants are numbers or 0-dim float64 tensors{told}.
    """
    dtype = torch.promote_types(theta.dtype, torch.float32)
    t = state["t"] + 1
    slots = state["slots"]
{axes}{body}
{results}
    return u, {{"t": t, "slots": tuple(slots)}}


class RuleOptimizer(torch.optim.Optimizer):
    """theta <- (1 - lr * weight_decay) * theta + lr * u.

    A coordinate whose new value or state would not be finite is left alone, the others go on; t stays where
    all were. Every 100 steps, so that the device is not waited for, one looks: a warning, once for every
    parameter, or ``RuntimeError`` where all of a parameter was left alone at ten looks in a row.{groups}
    """

    def __init__(self, params, lr=1.0, weight_decay=0.0, constants=CONSTANTS{parameter}):
        if lr < 0.0 or weight_decay < 0.0:
            raise ValueError(f"expected lr >= 0 and weight_decay >= 0, got {{lr}} and {{weight_decay}}")
        super().__init__(params, {{"lr": lr, "weight_decay": weight_decay{default}}})
        self.constants = dict(constants)
        self._calls, self._told = 0, set()

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rows = [(theta, group) for group in self.param_groups for theta in group["params"]]
        rows = [(theta, group) for theta, group in rows if theta.grad is not None]
        for theta, _ in rows:  # before anything is changed
            if theta.grad.layout is not torch.strided or theta.is_complex():
                raise RuntimeError("expected dense real gradients; use sparse=False and real parameters")
        for theta, group in rows:
            self._step_one(theta, group)
        self._calls += 1
        if self._calls % 100 == 0:
            self._look()
        return loss

    def _step_one(self, theta, group):
        store = self.state[theta]
        if not store:
            fresh = init(theta{option})
            store["step"] = fresh["t"]
            store["skipped"] = torch.zeros_like(fresh["t"])
            store["looks"] = torch.zeros_like(fresh["t"])
            store.update({{f"slot_{{i}}": slot for i, slot in enumerate(fresh["slots"])}})
        u, state, new = self._compute(theta, group, store["step"])
        ok = torch.isfinite(new)  # so is u, which is in it
        for slot in state["slots"]:
            ok = ok & torch.isfinite(slot)
        theta.copy_(torch.where(ok, new, theta))
        for i, slot in enumerate(state["slots"]):
            store[f"slot_{{i}}"] = torch.where({ok}, slot, store[f"slot_{{i}}"])
        store["skipped"] = theta.numel() - ok.sum()
        store["step"] = torch.where(store["skipped"] < max(1, theta.numel()), state["t"], store["step"])

    def _compute(self, theta, group, t):
        """The update, the new state and the new parameter."""
        slots = tuple(self.state[theta][f"slot_{{i}}"] for i in range({slots}))
        u, state = update(theta.grad, {{"t": t, "slots": slots}}, theta, self.constants{option})
        new = (1.0 - group["lr"] * group["weight_decay"]) * theta.to(u.dtype) + group["lr"] * u
        return u, state, new.to(theta.dtype)

    def _look(self):
        for group in self.param_groups:
            for theta in group["params"]:
                if theta.grad is not None:
                    self._look_at(theta, group, self.state[theta])

    def _look_at(self, theta, group, store):
        left, count = int(store["skipped"]), theta.numel()
        store["looks"] = store["looks"] + 1 if left == count > 0 else torch.zeros_like(store["looks"])
        if not left:
            return
        # What was left alone is as it was, so computing the step again tells why.
        u, state, new = self._compute(theta, group, store["step"] - int(left < count))
        parts = {{"gradient": [theta.grad], "update": [u], "state": state["slots"], "moved parameter": [new]}}
        cause = [name for name, xs in parts.items() if not all(bool(torch.isfinite(x).all()) for x in xs)]
        told = (
            f"{{left}} of {{count}} coordinates of a parameter of shape {{tuple(theta.shape)}} were left "
            f"alone, because the {{[*cause, 'step'][0]}} was not finite; lower lr or check the gradients"
        )
        if int(store["looks"]) >= 10:
            raise RuntimeError("at ten looks in a row " + told)
        if theta not in self._told:
            self._told.add(theta)
            warnings.warn(told, RuntimeWarning, stacklevel=4)

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        # torch casts state to the dtype of the parameters, which would round moving averages to bfloat16.
        order = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [theta for group in self.param_groups for theta in group["params"]]
        for index, theta in zip(order, params):
            if index in state_dict["state"]:
                saved = state_dict["state"][index]
                self.state[theta] = {{key: value.to(theta.device, copy=True) for key, value in saved.items()}}
'''


_ALIKE = """    u, *slots = (as_tensor(x).to(theta.device, dtype).expand(theta.shape) for x in results)"""

_SEEING = """    shapes = [theta.shape, *(old.shape for old in slots)]
    pairs = zip(results, shapes, strict=True)
    u, *slots = (as_tensor(x).to(theta.device, dtype).expand(shape) for x, shape in pairs)"""

_FUNCTIONS = '''def seen(x):
    """What tensor operators are given: of a tensor without elements, one that broadcasts to nothing."""
    x = as_tensor(x)
    return x if x.numel() else x.new_zeros([max(1, n) for n in x.shape])


def any_of(ok, slot):
    """Where new state is kept: a value of a row, a column or the tensor if any of its coordinates is ok."""
    over = tuple(k for k, n in enumerate(ok.shape) if n != slot.shape[k])
    return ok.any(over, keepdim=True) if over else ok


'''

_GROUPS = """

    A group's ``rows`` are the axes that number the outputs, () where its tensors are no matrices."""


def emit(rule: Equation) -> str:
    """The file's text. A feature without definition raises ``L2OError``."""
    seen = sight(rule, programs := branches(rule), "(0,)")
    needed = dict.fromkeys(op for p in programs for op in pointwise_operators(p, (*_INFIX, "neg")))
    needed = [f"op_{op}" for op in needed]
    if any(ins.op == "cummax" for p in programs for ins in p.instructions):
        needed.append("op_max")
    functions = copied_source("torch_impl.networks.operators", ["as_tensor", *needed]) + "\n\n\n"
    if operators := tensor_operators(programs):
        copied = copied_source("torch_impl.networks.matrix", [f"op_{op}" for op in operators])
        functions += copied.replace("Tensor = torch.Tensor\n\n\n", "", 1) + "\n\n\n"
    code, slots = steps(programs, _write, " " * 4, "SCALE * ", ".clone()"), len(programs[0].writes)
    zeros = f"torch.zeros_like(theta, dtype=dtype) for _ in range({slots})"
    if seen.axes:
        shapes = "slot_shapes(theta.shape, axes)"
        zeros = f"torch.zeros(shape, dtype=dtype, device=theta.device) for shape in {shapes}"
    return _FILE.format(
        header=header(rule),
        functions=functions + seen.functions + _FUNCTIONS * bool(seen.axes),
        zeros=zeros,
        slots="len(self.state[theta]) - 3" if seen.axes else slots,
        body="\n" * code.startswith("    results") + code,
        results=_SEEING if seen.axes else _ALIKE,
        ok="any_of(ok, slot)" if seen.axes else "ok",
        groups=_GROUPS * bool(seen.axes),
        default=', "rows": rows' * bool(seen.axes),
        option=', rows=group["rows"]' * bool(seen.axes),
        parameter=seen.parameter,
        axes=seen.axes,
        told=seen.told,
    )


def _write(ins: Instruction, args: list[str], decay: str) -> str:
    if ins.op == "input":
        return _INPUTS.get(ins.name) or constant(ins.name)
    if ins.op in _INFIX:
        return f"{args[0]} {_INFIX[ins.op]} {args[1]}"
    if ins.op in TENSOR:
        whole = (
            f"as_tensor({args[0]}).to(dtype).expand(theta.shape)" if ins.op in ("polar", "orth") else args[0]
        )
        return f"op_{ins.op}(seen({whole}), axes)"
    slot, first = f"slots[{ins.slot}]", args[0] if args else ""
    if ins.op == "ema" and not decay:
        return f"{args[1]} * {slot} + {args[2]} * {first}"
    forms = {
        "number": repr(ins.value),
        "neg": f"-{first}",
        "read": slot,
        "ema": f"{decay} * {slot} + (1.0 - {decay}) * {first}",
        "unbias": f"{first} / one_minus_power({decay}, t)",
        "cumsum": f"{slot} + {first}",
        "cummax": f"torch.where(t == 1, as_tensor({first}), op_max({slot}, {first}))",
    }
    return forms.get(ins.op) or f"op_{ins.op}({', '.join(args)})"


_INPUTS = {
    "g": "g.to(dtype)",
    "theta": "theta.to(dtype)",
    "t": "t.to(torch.float64)",
    "rows": "float(size_of(theta.shape, axes[0]))",
    "cols": "float(size_of(theta.shape, axes[1]))",
    "numel": "float(theta.numel())",
}
