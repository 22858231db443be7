"""The usual forms of optimizers first, then genetic programming over few columns for what they leave.

What both find are drafts: constants, decays included, are fitted afterwards on whole sequences.
"""

import dataclasses
import importlib
import time
from collections.abc import Callable

from interchange.language.expression import complexity, to_text
from interchange.search import ENGINES, Task
from interchange.search.samples import Sequences
from interchange.search.templates import drafts

_FORMS_OVER = 1.5  # times the largest size: pruning shortens what is longer
_FORMS_SHARE, _FORMS_LEAST = 0.4, 1.5  # of the time; seconds
_FORMS_MOST = 0.8  # of the time, where a busy machine leaves them less than their share of it
_FEWEST_TRIES, _PER_TRY = 400, 50  # of forms; evaluations of the genetic search for one of them
_GENETIC = "operon"


def search(task: Task, report: Callable[[list[str]], None]) -> list[str]:
    """Templates and a genetic search, as texts over the features; the templates are reported at once."""
    started = time.monotonic()
    found: list[str] = []
    if len(task.target) > 1:
        data = Sequences(task.features, task.target)
        names = [name for name in task.names if name != "theta"]
        if task.evaluations:
            forms = drafts(data, names, tries=max(_FEWEST_TRIES, task.evaluations // _PER_TRY))
        else:
            work = max(_FORMS_LEAST, _FORMS_SHARE * task.time)
            forms = drafts(data, names, work, at_most=max(work, _FORMS_MOST * task.time))
        shortest = min(map(complexity, forms), default=0)  # pruned to any size: no front stays empty
        most = max(shortest, _FORMS_OVER * task.max_size)
        found = [to_text(node) for node in forms if complexity(node) <= most]
        report(found)
    genetic = importlib.import_module(ENGINES[_GENETIC].module)
    rest = dataclasses.replace(task, time=max(1.0, task.time - (time.monotonic() - started)))
    return found + genetic.search(rest, lambda texts: report(found + texts))
