"""Operon through pyoperon 0.6: genetic programming with local search of constants (Burlacu et al. 2020).

Runs only inside the search's child process. Trees are read from the nodes, because the printed model
rounds its constants to a few decimals.
"""

from typing import Any

import numpy as np

# fmin and fmax are swapped in 0.6.2, and division is left to the bounded aq.
SYMBOLS = "add,sub,mul,aq,tanh,square,abs,constant,variable"


def search(rows: np.ndarray, target: np.ndarray, settings: dict[str, Any]) -> list[Any]:
    """A Pareto front of trees.

    Args:
        rows: [n, columns]; target: [n], standardised.
        settings: ``time`` in seconds, ``max_length``, ``seed``, ``threads``, ``symbols``.
    """
    from pyoperon.sklearn import SymbolicRegressor

    regressor = SymbolicRegressor(
        allowed_symbols=settings.get("symbols") or SYMBOLS,
        objectives=["r2", "length"],
        max_length=settings["max_length"],
        max_depth=10,
        population_size=1000,
        pool_size=1000,
        generations=10**6,
        max_evaluations=10**9,
        max_time=max(1, int(settings["time"])),
        optimizer_iterations=5,
        epsilon=1e-5,
        n_threads=settings["threads"],
        random_state=settings["seed"],
    )
    regressor.fit(rows.astype(np.float32), target.astype(np.float32))
    columns = {code: int(name[1:]) - 1 for code, name in regressor.variables_.items()}
    return [read_tree(row["tree"].Nodes, columns) for row in regressor.pareto_front_]


def read_tree(nodes: Any, columns: dict[int, int]) -> Any:
    """Nested lists from Operon's postfix nodes, whose first operand stands last."""
    stack: list[Any] = []
    for node in nodes:
        kind = str(node.Type).split(".")[-1].lower()
        if kind == "constant":
            stack.append(["c", float(node.Value)])
        elif kind == "variable":
            stack.append(["mul", ["c", float(node.Value)], ["x", columns[node.HashValue]]])
        else:
            args = [stack.pop() for _ in range(node.Arity)]
            tree = [kind, *args[:2]]
            for arg in args[2:]:  # add and mul may take more than two
                tree = [kind, tree, arg]
            stack.append(tree)
    (tree,) = stack
    return tree
