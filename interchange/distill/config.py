"""What ``python -m interchange.distill`` takes."""

import dataclasses

from common.run.config import check, option
from common.run.parallel import check_cluster
from interchange.search import find_engine

_SELECT = ("r2", "knee", "rollout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distillation (MATH.md section 4)."""

    trajectories: str = option("", "recorded trajectories: the file, or the run's folder")
    engine: str = option("auto", "search engine: auto, operon, linear, pysr, or sklearn:MODULE:CLASS")
    time: float = option(60.0, "seconds in all, search and refit", above=0)
    max_size: int = option(40, "largest rule, in nodes", low=3, high=1000)
    evaluations: int = option(0, "candidates to try, after which a seed gives the same rules again", low=0)
    memory: float = option(4.0, "GiB the engine may take", above=0)
    restarts: int = option(1, "independent searches whose rules are joined", low=1, high=1000)
    cluster: str = option("", "where restarts run: dask, dask:ADDRESS, ray, ray:ADDRESS; here if not given")
    active: int = option(0, "sequences along the rules' rollouts that the teacher answers", low=0, high=4096)
    teacher: str = option("", "for --active: the recorded teacher's run or weights, if not beside or shipped")
    start: str = option(
        "", "a rule, by file or name: its constants are refitted, and the search starts from it"
    )
    allow_singular: bool = option(False, "keep rules that are not finite where gradients are 0, marked")
    select: str = option("r2", "how the best rule is chosen", choices=lambda: _SELECT)
    backend: str = option("torch", "who rolls candidates out", choices=lambda: ("torch", "tf"))
    problem: str = option("", "problem of the rollouts; the recording's own if not given")
    seed: int = option(0, "seed of the search", low=0)
    threads: int = option(0, "threads; 0 takes every core there is", low=0)
    out: str = option("", "folder for the rules; 'rules' beside the trajectories if not given")
    dataset: str = option("", "data of the rollouts instead of the problem's")
    data_dir: str = option("", "folder with data sets, for the rollouts")
    quiet: bool = option(False, "print nothing but errors")
    overwrite: bool = option(False, "replace what --out already holds")

    def __post_init__(self) -> None:
        check(self)
        find_engine(self.engine)
        check_cluster(self.cluster)
