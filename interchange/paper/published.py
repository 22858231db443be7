"""What Zheng et al., "Symbolic Learning to Optimize" (ICLR 2022), have published: numbers and ranges.

R2 of distilled equations and of known rules stand with the tables of ``interchange.sanity``.
"""

import dataclasses

from common.registry import Registry
from interchange.sanity.teachers import TARGETS

Spread = tuple[float, float]  # mean and standard deviation


@dataclasses.dataclass(frozen=True)
class Model:
    """One row of the numerical table.

    Attributes:
        title: as the paper calls it.
        teacher: row of the teacher table that is trained for it.
        recipe: of ``train``, for curriculum and imitation; "" for plain training.
        tpf: temporal perception field by input, mc: mapping complexity; empty and None where it has none.
        lstm, rule: losses of the LSTM and of its equation.
        note: what is not known of it, or where we differ.
    """

    title: str
    teacher: str
    recipe: str = ""
    tpf: tuple[float, ...] = ()
    mc: float | None = None
    lstm: Spread | None = None
    rule: Spread | None = None
    note: str = ""

    @property
    def r2(self) -> tuple[float, float] | None:
        """Published R2 of its equation on the paper's problems P1 and P2."""
        return TARGETS[self.teacher].paper if self.teacher in TARGETS and not self.recipe else None


MODELS: Registry[Model] = Registry(
    "model",
    {
        "dm": Model("DM", "dm_raw", "", (25.2,), 182.9, (0.23, 0.13), (0.33, 0.26)),
        "dm+cl+il": Model("DM+CL+IL", "dm_raw", "dm+cl+il", (27.4,), 220.6, (0.19, 0.16), (0.33, 0.19)),
        "rp": Model("RP", "rnnprop", "", (5.3, 2.4), 104.7, (0.12, 0.07), (0.14, 0.09)),
        "rp+cl+il": Model("RP+CL+IL", "rnnprop", "rp+cl+il", (5.7, 3.1), 121.4, (0.11, 0.04), (0.12, 0.09)),
        "rp_s": Model("RP_s", "rp_s", "", (5.5, 2.2), 80.3, (0.09, 0.05), (0.10, 0.06)),
        "rp_si": Model(
            "RP_si",
            "rp_si_n",
            "",
            (4.6, 2.0, 4.1),
            67.0,
            (0.08, 0.05),
            (0.09, 0.04),
            "inputs as the paper's mapping figure labels them; its code has three p-norms (rp_si)",
        ),
        "rp_s_m": Model("RP_s through orth", "rp_s_m", note="ours: not in the paper"),
    },
)
# Largest update over inputs of +-0.02 in the mapping figure, where it gives one.
MAPPED_WIDTH = 0.02
MAPPED = {"dm": (-5e-4, 5e-4), "rp": (-1.5e-4, 2.7e-4), "rp_si": (-1.2e-3, 3.4e-3)}
# Loss of LSTM and equation about step 620 of the trajectory figure, on a scale of the paper's own.
COURSES = {"rp_si": (0.05, 0.1), "dm": (0.22, 0.32)}
# Test accuracy in percent: network and data -> the equation, the best of SGD's kind.
LARGE = {
    "ResNet-50, CIFAR-10": (95.40, 94.93),
    "ResNet-152, CIFAR-100": (78.07, 80.26),
    "MobileNetV2, CIFAR-100": (75.22, 74.90),
}
KNOWN_RULES = ("sgd", "lags", "mixed", "momentum(0.6)", "adam(0.9)")
