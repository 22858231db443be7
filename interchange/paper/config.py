"""What ``paper`` takes, and what each of its scales means."""

import dataclasses
from typing import Any

from common.registry import Registry
from common.run.config import Common, option
from common.tables.problems import PROBLEMS

ITEMS: dict[str, str] = {
    "table": "losses of LSTMs and equations, TPF, mapping complexity, R2",
    "sanity": "known equations found again",
    "figure2": "test accuracy of an equation on a convolutional net",
    "figure3": "mapping curves",
    "figure4": "courses from the same start",
    "figure5": "fit and perception against complexity",
    "figure6": "the tanh family",
    "long": "LSTMs with and without curriculum and imitation over many steps",
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        problem: where teachers are trained, recorded and compared; conv: where figure 2 is made.
        train: settings of the plain trainings; recipe: end of the recipes' names, recipes: settings over
            theirs.
        steps, runs, samples: of a recording.
        engine, seconds, evaluations: of a search; with evaluations it does not depend on the clock.
        searches, size: searches of each recording, largest rule.
        horizon, seeds: of the comparison of LSTM and equation.
        jobs: processes of comparisons.
        told: what a reader of the verdicts has to know.
        tasks: validation optimizees of every rule when one is chosen.
        conv_steps, conv_seeds, conv_trials, conv_epochs: of figure 2, the last those of tuning.
        long_steps, long_seeds: of the long runs.
    """

    problem: str
    conv: str
    train: dict[str, Any]
    recipe: str
    recipes: dict[str, Any]
    steps: int = 300
    runs: int = 8
    samples: int = 50_000
    engine: str = "auto"
    seconds: float = 60.0
    evaluations: int = 0
    searches: int = 3
    size: int = 50
    horizon: int = 300
    seeds: int = 10
    tasks: int = 4
    conv_steps: int = 1000
    conv_seeds: int = 5
    conv_trials: int = 7
    conv_epochs: int = 30
    long_steps: int = 5000
    long_seeds: int = 3
    jobs: int = 2
    told: str = ""


SCALES: Registry[Scale] = Registry(
    "scale",
    {
        "smoke": Scale(
            "digits-mlp",
            "digits-conv",
            {"epochs": 8, "epoch_length": 40, "lr": 5e-3, "validate_every": 4, "validation_tasks": 1},
            "-short",
            {
                "epochs": 8,
                "lengths": (20, 40),
                "lr": 5e-3,
                "validate_every": 2,
                "validation_tasks": 1,
            },
            steps=60,
            runs=4,
            samples=6_000,
            engine="linear",
            evaluations=100,
            searches=1,
            size=20,
            horizon=60,
            seeds=2,
            tasks=1,
            conv_steps=40,
            conv_seeds=2,
            conv_trials=1,
            conv_epochs=2,
            long_steps=200,
            long_seeds=2,
            jobs=1,
            told="everything runs, but trainings are far too short to judge the paper by",
        ),
        "small": Scale(
            "mnist-mlp",
            "mnist-conv",
            {"epochs": 200, "epoch_length": 200, "lr_decay": 0.1, "lr": 2e-3},
            "-short",
            {"lr": 2e-3},
            told="curriculum and imitation by a shortened recipe",
        ),
        "full": Scale(
            "mnist-mlp",
            "resnet-50",
            {"epochs": 1000, "epoch_length": 200, "lr_decay": 0.1, "lr": 2e-3},
            "",
            {},
            runs=12,
            samples=150_000,
            seconds=600.0,
            searches=10,
            tasks=8,
            conv_steps=20_000,
            conv_seeds=3,
            long_steps=10_000,
            long_seeds=10,
        ),
    },
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperConfig(Common):
    """Every table and figure of the paper."""

    scale: str = option(
        "smoke",
        "minutes, some hours, or days on two cores (full: meant for a GPU)",
        choices=lambda: SCALES,
    )
    only: tuple[str, ...] = option((), "some of them; all if not given", choices=lambda: ITEMS)
    problem: str = option(
        "", "row of the problem table instead of the scale's", choices=lambda: PROBLEMS, empty=True
    )
    dataset: str = option("", "data instead of the problem's: a data set, synthetic, or an .npz of your own")
    jobs: int = option(0, "processes of comparisons; 0 takes the scale's: 1 for smoke, else 2", low=0)
    plan: bool = option(False, "print the commands and what they cost, and run none")

    @property
    def amounts(self) -> Scale:
        """How much of everything."""
        scale = SCALES[self.scale]
        return dataclasses.replace(scale, problem=self.problem or scale.problem, jobs=self.jobs or scale.jobs)

    @property
    def items(self) -> tuple[str, ...]:
        """The tables and figures that are asked for."""
        return tuple(name for name in ITEMS if not self.only or name in self.only)
