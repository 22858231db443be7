"""Inner steps per second and peak memory of meta-training, against a full-graph loop and a jitted JAX scan.

    python tests/benchmarks/meta_training.py --data-dir DATA [--teachers rnnprop ...] [--json FILE]
    python tests/benchmarks/meta_training.py --together --teachers rp_s rp_s_m --contestants torch

Contestants: ``torch`` and ``tf`` are this project's ``Trainer.run``, with the exact meta-gradient and
with that of ``--coordinates``, a share of them. ``jax`` is a jitted scan (``reference_jax.py``). ``iclr`` is
the full-graph torch loop as the ICLR 2022 code has it, with a backward pass through all updates so far at
every step; ``naive`` is a full-graph torch loop with one backward pass, which that code is not
(``reference_torch.py`` says what they do).

Each has a process of its own. They run one epoch after the other, round by round, and sleep in between; all
of them draw batches, evaluate the optimizee and its gradient, run features and network, take the
meta-gradient and step Adam once an unroll. Before any timing the first unroll's losses and meta-gradient must
agree. Peak memory is the largest resident size during the timed epochs less that before the first unroll.
"""

import argparse
import os
import platform
import statistics
import sys
from typing import Any

from interleaved import parser_of
from interleaved import save as save_json
from turns import OURS, REFERENCES, SLOW, Child, chosen, rounds_of

from common.tables.teachers import TEACHERS

TOLERANCE = {"losses": 1e-5, "gradient": 1e-3}  # relative, in float32; of the largest entry of each array

_ALL = (*OURS, *REFERENCES)


def contestants(options: argparse.Namespace, teacher: str) -> list[Child]:
    """The children of one teacher, built at the same time."""
    children = []
    for name in options.contestants:
        for share in options.coordinates if name in OURS else [1.0]:
            steps = min(options.slow_steps, options.steps) if name in SLOW else options.steps
            more = {"contestant": name, "teacher": teacher, "coordinates": share, "steps": steps}
            children.append(Child(**chosen(options) | more))
    return [child.wait() for child in children]


def disagreement(children: list[Child]) -> dict[str, dict[str, float]]:
    """Label -> largest relative difference of the first unroll's losses and meta-gradient to a reference's.

    The reference is the first of iclr, naive and jax that runs, or else whoever does. The gradient of a
    subset of coordinates is held against the full graph cut off at the others, where such a loop runs.
    """
    by_label = {child.label: child for child in children}
    base = next(name for name in ("iclr", "naive", "jax", *by_label) if name in by_label)
    reference, rows = by_label[base].ask("first"), {}
    for label, child in by_label.items():
        got, want, share = child.ask("first"), reference, child.settings["coordinates"]
        if (share < 1.0) != (got["picked"] is not None):
            raise SystemExit(f"{label}: expected the meta-gradient of {share:g} of the coordinates")
        row = {"losses": _difference(got["losses"], want["losses"])}
        if got["picked"] is not None and base in SLOW:
            want = by_label[base].ask("subset", got["picked"])
        if got["picked"] is None or base in SLOW:
            gradient = want["gradient"]
            row["gradient"] = max(_difference(got["gradient"][name], gradient[name]) for name in gradient)
        rows[label] = row
    return rows


def _difference(got: list[float], want: list[float]) -> float:
    """Largest difference over the largest entry; inf where shapes differ or a value is not finite."""
    if len(got) != len(want):
        return float("inf")
    size = max(map(abs, want)) or 1.0
    differences = [abs(a - b) / size for a, b in zip(got, want, strict=True)]
    return max(differences) if all(d == d for d in differences) else float("inf")


def table(teacher: str, rows: dict[str, dict[str, Any]]) -> str:
    """One line per contestant: steps/s, ratios to the references that ran, memory, agreement."""
    against = [name for name in REFERENCES if name in rows]
    heads = [f"/ {name}" for name in against]
    lines = [f"{teacher:14s}{'steps/s':>10s}" + "".join(f"{head:>9s}" for head in heads)]
    lines[0] += f"{'peak MB':>10s}{'loss diff':>11s}{'grad diff':>11s}"
    for label, row in rows.items():
        cells = "".join(f"{row['median'] / rows[name]['median']:9.2f}" for name in against)
        line = f"  {label:12s}{row['median']:10.2f}{cells}{row['peak'] / 1e6:10.1f}"
        differences = [row["disagreement"].get(kind) for kind in TOLERANCE]
        lines.append(line + "".join("          -" if d is None else f"{d:11.1e}" for d in differences))
    return "\n".join(lines)


def stored(teacher: str, unroll: int, coordinates: int) -> dict[str, int]:
    """Bytes an exact unroll without graphs has to keep: network inputs [T, F, N] and gradients [T, N]."""
    each = 4 * unroll * coordinates
    return {"features": len(TEACHERS[teacher].inputs) * each, "gradients": each}


def measure(options: argparse.Namespace, teacher: str) -> dict[str, Any]:
    """Everything about one teacher: warm-up, agreement, timed rounds."""
    children = contestants(options, teacher)
    try:
        for child in children:
            child.ask("turn")
        apart = disagreement(children)
        wrong = [
            f"{label}: {kind} differ by {value:.1e}, expected at most {TOLERANCE[kind]:.0e}"
            for label, row in apart.items()
            for kind, value in row.items()
            if value > TOLERANCE[kind]
        ]
        if wrong:
            raise SystemExit(f"{teacher}: not the same computation. " + "; ".join(wrong))
        rows = rounds_of(children, options.rounds)
        for label, row in rows.items():
            row["disagreement"] = apart[label]
        size = children[0].ask("size")["coordinates"]
    finally:
        for child in children:
            child.close()
    kept = stored(teacher, options.unroll, size)
    idle = max(row["idle_cpu"] for row in rows.values())
    print(table(teacher, rows))
    print(
        f"  N = {size:,}, T = {options.unroll}; stored: features {kept['features'] / 1e6:.1f} MB, gradients "
        f"{kept['gradients'] / 1e6:.1f} MB; those not in turn kept up to {idle:.2f} processors busy",
        flush=True,
    )
    return {"contestants": rows, "coordinates": size, "stored": kept}


def together(options: argparse.Namespace) -> dict[str, Any]:
    """Teachers beside each other, all contestants of all of them in turn: what a structure costs."""
    children: list[Child] = []
    try:
        for teacher in options.teachers:
            for child in contestants(options, teacher):
                child.label = f"{child.label} {teacher}"
                children.append(child)
                child.ask("turn")
        rows = rounds_of(children, options.rounds)
    finally:
        for child in children:
            child.close()
    for label, row in rows.items():
        low, high = min(row["steps_per_second"]), max(row["steps_per_second"])
        cost = statistics.median(row["cpu_ms"])
        print(f"{label:20s}{row['median']:9.2f} steps/s, {low:.2f} to {high:.2f}; {cost:.2f} ms of processor")
    return rows


def parsed() -> argparse.Namespace:
    parser = parser_of(__doc__, unroll=20, rounds=7, seed=0)
    parser.add_argument("--teachers", nargs="+", default=["dm", "rnnprop", "rp_s", "rp_si"])
    parser.add_argument("--contestants", nargs="+", default=_ALL, choices=_ALL)
    parser.add_argument("--coordinates", nargs="+", type=float, default=[1.0, 0.1], help="of torch and tf")
    parser.add_argument("--problem", default="mnist-mlp", help="a ReLU network of dense layers")
    parser.add_argument("--data-dir", default="", help="$L2O_DATA if not given")
    parser.add_argument("--steps", type=int, default=200, help="inner steps of an epoch, which is one turn")
    parser.add_argument("--slow-steps", type=int, default=20, help="the same for naive and iclr, if fewer")
    parser.add_argument("--threads", type=int, default=0, help="processors of each contestant (0: all)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--together", action="store_true", help="all teachers in turn, not one by one")
    options = parser.parse_args()
    if min(options.steps, options.slow_steps) % options.unroll:
        options.slow_steps = options.unroll  # whole unrolls of every length
    if options.steps % options.unroll:
        parser.error(f"--steps {options.steps}: expected a multiple of --unroll {options.unroll}")
    return options


def main() -> None:
    options = parsed()
    machine = {"processors": len(os.sched_getaffinity(0)), "load": os.getloadavg()}
    machine["system"] = platform.platform()
    report: dict[str, Any] = {"command": sys.argv[1:], "machine": machine}

    def save() -> None:
        if options.json:
            save_json(options.json, report)

    if options.together:
        report["together"] = together(options)
    else:
        for teacher in options.teachers:
            report[teacher] = measure(options, teacher)
            save()
    save()


if __name__ == "__main__":
    main()
