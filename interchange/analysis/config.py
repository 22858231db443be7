"""What ``python -m interchange.analysis`` takes."""

import dataclasses

from common.errors import L2OError
from common.run.config import check, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """Analysis of optimizers (MATH.md section 5)."""

    sources: tuple[str, ...] = option(
        (), "teachers and rules: names, files, runs, folders of rules, or hand-made optimizers by name"
    )
    trajectories: str = option("", "recorded trajectories to analyse on; noise if not given")
    beside: tuple[str, ...] = option((), "other optimizers' recordings from the same starts, to show beside")
    out: str = option("", "folder for tables, figures and a page; only a table is printed if not given")
    range: float = option(0.0, "half width of mapping curves; 0 takes what was recorded", low=0)
    seeds: int = option(0, "searches for the mapping complexity of what was recorded", low=0, high=100)
    time: float = option(60.0, "seconds of one search", above=0)
    evaluations: int = option(0, "candidates of one search, after which a seed gives the same again", low=0)
    max_size: int = option(40, "largest rule of a search, in nodes", low=3, high=1000)
    engine: str = option("auto", "search engine, as of distill")
    threads: int = option(0, "threads of a search; 0 takes every core there is", low=0)
    seed: int = option(0, "seed of noise, of what is drawn and of the first search", low=0, high=2**31 - 1)
    quiet: bool = option(False, "print nothing but errors")
    overwrite: bool = option(False, "replace what --out already holds")

    def __post_init__(self) -> None:
        check(self)
        for name in ("beside", "seeds"):
            if getattr(self, name) and not self.trajectories:
                raise L2OError(f"--{name} needs --trajectories; name the recording")
