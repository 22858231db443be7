"""Time of a step of a rule of Muon's kind on ResNet-18's tensors: ``python tests/benchmarks/step_muon.py``.

Against the same iteration written plainly in torch, tensor by tensor and, for equal shapes, batched; vectors
take plain momentum everywhere. float32; the rule's guard is on.
"""

from collections.abc import Callable, Sequence

import interleaved
import torch
from shapes import resnet18
from step_torch import parameters

from interchange.rule.rule import Rule
from torch_impl import SymbolicOptimizer

C, B, LR = 0.95, 0.9, 1e-3
RULE = Rule.from_text(
    "by_matrix(-0.2 * sqrt(max(rows, cols)) * polar(g + c * ema(g, b)), -(g + c * ema(g, b)))",
    {"c": C, "b": B},
)


def polar(x: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz of matrices [..., rows, columns], as users write it."""
    turned = x.shape[-2] > x.shape[-1]
    x = x.mT if turned else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-30)
    for _ in range(5):
        a = x @ x.mT
        if x.dim() == 2:
            x = torch.addmm(x, torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
        else:
            b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
            x = torch.baddbmm(x, b, x, beta=3.4445)
    return x.mT if turned else x


def plain(params: Sequence[torch.Tensor], batched: bool) -> Callable[[], None]:
    """A step written by hand."""
    averages = [torch.zeros_like(p) for p in params]
    together: dict[object, list[int]] = {}
    for k, p in enumerate(params):
        together.setdefault(tuple(p.shape) if batched and p.dim() > 1 else k, []).append(k)

    @torch.no_grad()
    def step() -> None:
        for numbers in together.values():
            directions = []
            for k in numbers:
                m = averages[k].lerp_(params[k].grad, 1.0 - B)
                directions.append(torch.add(params[k].grad, m, alpha=C))
            if params[numbers[0]].dim() > 1:
                flat = [d.flatten(1) for d in directions]
                scale = 0.2 * max(flat[0].shape) ** 0.5
                found = polar(torch.stack(flat)) if len(flat) > 1 else [polar(flat[0])]
                directions = [scale * u.view_as(d) for u, d in zip(found, directions, strict=True)]
            for k, u in zip(numbers, directions, strict=True):
                params[k].sub_(u, alpha=LR)

    return step


def main() -> None:
    args = interleaved.parser_of(__doc__.splitlines()[0], rounds=7).parse_args()
    shapes = resnet18()
    mine, *others = [parameters(shapes, "cpu") for _ in range(3)]
    optimizer = SymbolicOptimizer(mine, RULE, LR)
    steps = {
        "rule": optimizer.step,
        "by hand": plain(others[0], batched=False),
        "by hand, batched": plain(others[1], batched=True),
    }
    for step in steps.values():
        step()
    worst = max(float((p - q).detach().abs().max()) for p, q in zip(mine, others[0], strict=True))
    assert worst < 1e-4 * LR * 0.2 * 4608**0.5, worst
    medians = interleaved.compare(steps, args.rounds, warm_up=1)
    best = min(medians["by hand"], medians["by hand, batched"])
    print(interleaved.table({"ResNet-18": medians}, "by hand"))
    print(f"{medians['rule'] / best:.3f} times the better, {torch.get_num_threads()} threads")
    if args.json:
        interleaved.save(args.json, {"ResNet-18": medians})


if __name__ == "__main__":
    main()
