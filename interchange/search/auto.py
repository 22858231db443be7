"""The usual forms of optimizers first, then genetic programming over few columns for what they leave.

What both find are drafts: constants, decays included, are fitted afterwards on whole sequences.
"""

import dataclasses
import importlib
from collections.abc import Callable

from interchange.expression import complexity, to_text
from interchange.samples import Sequences
from interchange.search import ENGINES, Task
from interchange.search.templates import drafts

_FORMS_OVER = 1.5  # times the largest size: pruning shortens what is longer
_GENETIC = "operon"


def search(task: Task, report: Callable[[list[str]], None]) -> list[str]:
    """Templates and a genetic search, as texts over the features; the templates are reported at once."""
    found: list[str] = []
    if len(task.target) > 1:
        data = Sequences(task.features, task.target)
        forms = drafts(data, task.names, task.time / 4.0)
        found = [to_text(node) for node in forms if complexity(node) <= _FORMS_OVER * task.max_size]
        report(found)
    genetic = importlib.import_module(ENGINES[_GENETIC].module)
    rest = dataclasses.replace(task, time=max(1.0, 0.75 * task.time))
    return found + genetic.search(rest, lambda texts: report(found + texts))
