"""Time of a step of the rule Adam against torch's Adam: ``python tests/benchmarks/step_torch.py``.

Ratios are to the fastest of torch's Adam with foreach=True and foreach=False; the guard against updates that
are not finite is on. One row per number of parameters, as the tensors of a network and as a single one.
"""

import argparse
from collections.abc import Callable, Sequence

import interleaved
import torch

from interchange.rule import Rule
from torch_impl import SymbolicOptimizer

SHAPES = {
    100_000: [(64, 784), (64,), (128, 64), (128,), (256, 128), (256,), (10, 256), (10,)],
    1_000_000: [(1024, 784), (1024,), (128, 1024), (128,), (512, 128), (10, 512), (10,)],
    25_000_000: [(512, 512, 3, 3), (512,), (512,), (2048, 512), (2048,)] * 8,
}


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
    shapes: Sequence[tuple[int, ...]], device: str, compiled: bool
) -> tuple[dict[str, Callable[[], object]], int]:
    """A step of each optimizer, and the rule's floats of state per parameter."""
    rule = Rule.named("adam")

    def adam(**options: bool) -> Callable[[], object]:
        return torch.optim.Adam(parameters(shapes, device), lr=1e-3, **options).step

    optimizer = SymbolicOptimizer(parameters(shapes, device), rule, lr=1e-3)
    optimizer.step()
    floats = sum(
        a.numel() for s in optimizer.state.values() for k, a in s.items() if k not in ("step", "skipped")
    )
    steps = {
        "foreach": adam(foreach=True),
        "for-loop": adam(foreach=False),
        "fused": adam(fused=True),
        "rule": optimizer.step,
    }
    if compiled:
        other = SymbolicOptimizer(parameters(shapes, device), rule, lr=torch.tensor(1e-3, device=device))
        steps["rule compiled"] = torch.compile(other.step)
    return steps, floats // sum(torch.Size(shape).numel() for shape in shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=list(SHAPES), help="numbers of parameters")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", default="", help="file for the medians, in seconds")
    args = parser.parse_args()
    rows = {}
    for threads in args.threads:
        torch.set_num_threads(threads)
        for size in map(int, args.sizes):
            for kind, shapes in (("net", SHAPES.get(size)), ("one", [(size,)])):
                if shapes is None:
                    continue
                torch._dynamo.reset()
                steps, floats = cases(shapes, args.device, not args.no_compile)
                if args.device != "cpu":
                    steps = {name: _synchronized(step) for name, step in steps.items()}
                medians = interleaved.compare(steps, args.rounds)
                label = f"{threads} threads, {size:.0e} {kind}"
                rows[label] = {**medians, "state floats": floats}
                best = min(("foreach", "for-loop"), key=medians.get)
                print(interleaved.table({label: medians}, best), flush=True)
    if args.json:
        interleaved.save(args.json, rows)


def _synchronized(step: Callable[[], object]) -> Callable[[], object]:
    def call() -> None:
        step()
        torch.cuda.synchronize()

    return call


if __name__ == "__main__":
    main()
