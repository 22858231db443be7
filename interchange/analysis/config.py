"""What ``python -m interchange.analysis`` takes."""

import dataclasses

from common.run.config import check, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """Analysis of optimizers (MATH.md section 5)."""

    sources: tuple[str, ...] = option(
        (), "teachers and rules: names, files, runs, folders of rules, or hand-made optimizers by name"
    )
    trajectories: str = option("", "recorded trajectories to analyse on; noise if not given")
    out: str = option("", "folder for tables, figures and a page; only a table is printed if not given")
    seed: int = option(0, "seed of noise and of what is drawn", low=0, high=2**63 - 1)
    quiet: bool = option(False, "print nothing but errors")
    overwrite: bool = option(False, "replace what --out already holds")

    def __post_init__(self) -> None:
        check(self)
