"""Search engines behind one protocol, each run in a child process with a time limit.

An engine is a module with ``search(X, y, settings) -> list of trees`` over columns ``x0, x1, ...``; a
tree is nested lists: ``["x", k]``, ``["c", value]`` or ``[operator, tree, ...]``.
"""

from common.registry import Registry

ENGINES: Registry[str] = Registry("engine", {"operon": "interchange.search.operon"})
PACKAGES = {"operon": "pyoperon"}
