"""Time of a step of a rule against torch's Adam: ``python tests/benchmarks/step_torch.py``.

Ratios are to torch's fused Adam; the guard is on. A row for each rule and number of parameters, as the 160
tensors of a network and as a single one. The bandwidth is that of seven arrays a step (four read, three
written), which is what a rule with two floats of state has to move.
"""

import math
from collections.abc import Callable, Sequence

import interleaved
import torch

from interchange.rule.rule import Rule
from torch_impl import SymbolicOptimizer

SIZES = (100_000, 1_000_000, 25_000_000)
TENSORS = 160


def network(size: int) -> list[tuple[int, ...]]:
    """Shapes of matrices and vectors in turn, ``size`` numbers in all, about."""
    side = int((math.sqrt(1.0 + 8.0 * size / TENSORS) - 1.0) / 2.0)
    return [(side, side), (side,)] * (TENSORS // 2)


def parameters(shapes: Sequence[tuple[int, ...]], device: str) -> list[torch.nn.Parameter]:
    """Parameters with gradients; the same ones for every case."""
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in shapes:
        p = torch.nn.Parameter(torch.randn(shape, generator=generator).to(device))
        p.grad = 0.1 * torch.randn(shape, generator=generator).to(device)
        params.append(p)
    return params


def cases(
    rule: Rule, shapes: Sequence[tuple[int, ...]], device: str, compiled: bool
) -> tuple[dict[str, Callable[[], object]], int]:
    """A step of each optimizer, and the rule's floats of state per parameter."""

    def adam(**options: bool) -> Callable[[], object]:
        return torch.optim.Adam(parameters(shapes, device), lr=1e-3, **options).step

    optimizer = SymbolicOptimizer(parameters(shapes, device), rule, lr=1e-3)
    optimizer.step()
    floats = sum(
        a.numel() for s in optimizer.state.values() for k, a in s.items() if k not in ("step", "skipped")
    )
    steps = {
        "fused": adam(fused=True),
        "foreach": adam(foreach=True),
        "for-loop": adam(foreach=False),
        "rule": optimizer.step,
        "rule, plain": SymbolicOptimizer(parameters(shapes, device), rule, lr=1e-3, foreach=False).step,
    }
    if compiled:
        other = SymbolicOptimizer(parameters(shapes, device), rule, lr=torch.tensor(1e-3, device=device))
        steps["rule, torch.compile"] = torch.compile(other.step)
    return steps, floats // sum(torch.Size(shape).numel() for shape in shapes)


def main() -> None:
    parser = interleaved.parser_of(__doc__.splitlines()[0], rounds=15, device="cpu")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="numbers of parameters")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--rules", nargs="+", default=["adam", "rnnprop_tuned"])
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    args = parser.parse_args()
    rows = {}
    for threads in args.threads:
        torch.set_num_threads(threads)
        for name in args.rules:
            for size in map(int, args.sizes):
                for kind, shapes in (("net", network(size)), ("one", [(size,)])):
                    torch._dynamo.reset()
                    steps, floats = cases(Rule.named(name), shapes, args.device, args.compile)
                    if args.device != "cpu":
                        steps = {name: _synchronized(step) for name, step in steps.items()}
                    medians = interleaved.compare(steps, args.rounds)
                    label = f"{name}, {threads} threads, {size:.0e} {kind}"
                    rows[label] = {**medians, "state floats": floats}
                    count = sum(torch.Size(shape).numel() for shape in shapes)
                    speed = 28e-9 * count / medians["rule"]
                    print(interleaved.table({label: medians}, "fused"), f"{floats} floats, {speed:.1f} GB/s")
    if args.json:
        interleaved.save(args.json, rows)


def _synchronized(step: Callable[[], object]) -> Callable[[], object]:
    def call() -> None:
        step()
        torch.cuda.synchronize()

    return call


if __name__ == "__main__":
    main()
