"""Made-up recordings, and files of recorders read again."""

from pathlib import Path

import numpy as np

from interchange.files.trajectories import Run, Trajectories, load_trajectories


def saved(recorder, folder: Path) -> Trajectories:
    return load_trajectories(recorder.save(folder / "t.h5"))


def whole(trajectories: Trajectories) -> Run:
    """The one run whose coordinates were dealt out, put together again in the order of its elements."""
    parts = list(trajectories.runs.values())
    places = {
        name: np.concatenate([getattr(p, name) for p in parts]) for name in ("param_index", "flat_index")
    }
    order = np.lexsort((places["flat_index"], places["param_index"]))
    fields = {
        name: np.concatenate([getattr(p, name) for p in parts], 1)[:, order] for name in ("x", "g", "y")
    }
    return Run(**(vars(parts[0]) | fields | {name: array[order] for name, array in places.items()}))


def make_run(name="000000", steps=12, coordinates=5, dtype="f4", random=0, **changes) -> Run:
    """A made-up run of a teacher with two features."""
    generator = np.random.default_rng(random)

    def numbers(*shape):
        return generator.normal(size=shape).astype(dtype)

    fields = {
        "x": numbers(steps, coordinates, 2),
        "g": numbers(steps, coordinates),
        "y": numbers(steps, coordinates),
        "loss": generator.normal(size=steps),
        "step": np.arange(1, steps + 1),
        "param_index": np.array([0, 0, 1, 1, 1])[:coordinates],
        "flat_index": np.array([0, 7, 0, 1, 2])[:coordinates],
        "params_names": ("layer_0/w", "layer_0/b"),
        "params_shapes": ((4, 2), (3,)),
        "problem": "digits-mlp",
        "problem_json": '{"name":"digits-mlp"}',
        "source_kind": "teacher",
        "source_json": '{"name":"rp_s"}',
        "source_sha256": "ab" * 32,
    }
    fields |= {"seed": random, "init_seed": random + 1, "num_steps": steps, "scale": 0.01}
    return Run(**{"name": name, "diverged": False, "outcome": "ok"} | fields | changes)
