"""Files of recorders, read again."""

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
