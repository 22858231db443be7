"""The README's picture from an evaluation: ``readme_figure.py evaluation.h5 > interchange/report/rule.svg``.

A page shows it as an image, which inherits no colour: text and axes get a grey readable on light and dark.
"""

import sys

import numpy as np

from interchange.files.results import load_evaluation
from interchange.report import drawing, plots

GREY, FONT = "#7d8590", "system-ui, sans-serif"

rows = load_evaluation(sys.argv[1]).rows
names = dict.fromkeys(row.optimizer for row in rows)
curves = {
    name.removeprefix("rule:"): np.stack([row.losses for row in rows if row.optimizer == name])
    for name in names
}
strong = [name.removeprefix("rule:") for name in names if name.startswith("rule:")]
drawing.POINTS = 120  # of a line: a small file
text = plots.loss_curves(curves, strong, prefix="rule")
print(text.replace("currentColor", GREY).replace("font-family: inherit", f"font-family: {FONT}"))
