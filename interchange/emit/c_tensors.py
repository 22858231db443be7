"""A program that sees tensors as C over one matrix [rows, cols]: plain loops, and the guard at the end.

Values of a row, of a column, of the matrix and of coordinates are computed in loops of their own. What a
tensor operator reads or writes, and what another loop uses, stands in ``scratch``.
"""

import dataclasses
from collections.abc import Sequence

from interchange.emit.c_loops import declared, needed
from interchange.emit.c_source import Line, Writer
from interchange.language.compiler import Instruction, Program
from interchange.language.operators import TENSOR
from interchange.language.view import FULL

Kind = tuple[bool, bool]  # whether a value has an axis of rows, of columns

_TENSOR, _ROWS, _COLUMNS, _ALL = (False, False), (True, False), (False, True), (True, True)
_ORDER = (_TENSOR, _ROWS, _COLUMNS, _ALL)  # a value is made of values before it
_SIZE = {_TENSOR: "1", _ROWS: "rows", _COLUMNS: "cols", _ALL: "n"}
_INDEX = {_TENSOR: "0", _ROWS: "r", _COLUMNS: "c", _ALL: "i"}


@dataclasses.dataclass(frozen=True)
class Function:
    """The inside of a step in C.

    Attributes:
        text: declarations and statements; they read ``rows, cols, n, t, constant, s0, s1, ..., scratch``.
        scratch: how many numbers ``scratch`` has to hold, as a C expression of ``rows, cols, n, least``,
            the last one being the smaller side.
        slots: per slot the size of its state, as a C expression.
    """

    text: str
    scratch: str
    slots: tuple[str, ...]


def write_function(program: Program, constants: Sequence[str]) -> Function:
    """The step with its guard: a coordinate is kept where all that it changes is finite."""
    return _Matrix(program, constants).function()


def _kind(kind: frozenset[str] | None) -> Kind:
    kind = FULL if kind is None else kind
    return "rows" in kind, "columns" in kind


class _Matrix(Writer):
    """Lines with the loop each belongs to: its level, which every tensor operator raises, and its kind."""

    def __init__(self, program: Program, constants: Sequence[str]) -> None:
        super().__init__(program, {"g": "g[i]", "theta": "theta[i]"}, constants)
        self._place: dict[str, tuple[int, Kind]] = {}  # by line
        self._calls: dict[str, str] = {}  # by line: the operator that fills its array
        self._levels: list[int] = []  # by register
        self._here: tuple[int, Kind] = (0, _ALL)

    def _line(self, text: str, uses: Sequence[str]) -> str:
        name = super()._line(text, uses)
        self._place[name] = self._here
        return name

    def _write(self, ins: Instruction) -> None:
        kind = _kind(self._program.kinds[len(self._texts)])
        level = max((self._levels[arg] for arg in ins.args), default=0)
        self._here = level, kind
        if ins.op not in TENSOR:
            super()._write(ins)
        elif self._scalar[ins.args[0]] and ins.op not in ("polar", "orth"):
            self._define_once(f"k{ins.args[0]}", {})
        else:
            self._operator(ins, self._texts[ins.args[0]])
            level += 1
        self._levels.append(level)

    def _operator(self, ins: Instruction, x: str) -> None:
        """The call of a tensor operator, after the loops of its level."""
        level, kind = self._here
        if ins.op in ("polar", "orth") and (x not in self._place or self._place[x][1] != _ALL):
            x = self._line(x, (x,))  # as a whole matrix
        name = self._line("", (x,))
        self._place[name] = level + 1, kind
        has_rows, has_columns = kinds = self._place[x][1]
        high, wide = _SIZE[has_rows, False], _SIZE[False, has_columns]
        if ins.op == "mean":
            high, wide = "1", _SIZE[kinds]
        function = {"mean": "row_mean", "orth": "polar"}.get(ins.op, ins.op)
        work = f", work, {int(ins.op == 'orth')}" if function == "polar" else ""
        self._calls[name] = f"{function}_(kept_{x}, {high}, {wide}, kept_{name}{work});"
        self._define(name, {})

    def function(self) -> Function:
        step = self.step()
        lines = needed(step.lines, (step.outputs[0], *step.writes))
        self._kinds = [_kind(kind) for kind in self._program.slot_kinds]
        last = max((self._place[line.name][0] for line in lines), default=0), _ALL
        groups: dict[tuple[int, Kind], list[Line]] = {last: []}
        for line in lines:
            if line.name not in self._calls:
                groups.setdefault(self._place[line.name], []).append(line)
        ends = {step.outputs[0], *step.writes} & self._place.keys()
        reduced = {w for w, kind in zip(step.writes, self._kinds, strict=True) if kind != _ALL}
        kept = [line.name for line in lines if self._crosses(line, lines, ends, last) or line.name in reduced]
        body = ""
        for level in range(last[0] + 1):
            for kind in (kind for kind in _ORDER if (level, kind) in groups):
                ending = (level, kind) == last
                final = self._final(step.outputs[0], step.writes) if ending else []
                body += self._loop(groups[level, kind], kind, kept, final, ends if ending else set())
            body += self._called(level, lines)
        body += self._reduced_state(step.writes)
        pointers, scratch = self._scratch(kept)
        text = declared(step.once, body, "    ") + pointers + body
        return Function(text, scratch, tuple(_SIZE[kind] for kind in self._kinds))

    def _crosses(self, line: Line, lines: Sequence[Line], ends: set[str], last: tuple[int, Kind]) -> bool:
        """Whether a value is read outside of the loop that makes it."""
        own = self._place[line.name]
        readers = [other for other in lines if line.name in other.uses]
        return (
            line.name in self._calls
            or (line.name in ends and own != last)
            or any(other.name in self._calls or self._place[other.name] != own for other in readers)
        )

    def _called(self, level: int, lines: Sequence[Line]) -> str:
        """The operators that read what the loops of a level have made."""
        names = [line.name for line in lines if line.name in self._calls]
        return "".join(f"    {self._calls[name]}\n" for name in names if self._place[name][0] == level + 1)

    def _final(self, output: str, writes: Sequence[str]) -> list[str]:
        """What happens to one coordinate at the end."""
        finite = "".join(f" && finite_({w})" for w in dict.fromkeys(writes))
        whole = [slot for slot, kind in enumerate(self._kinds) if kind == _ALL]
        marks = [f"any_{_INDEX[kind]}[{_INDEX[kind]}] += (real)ok;" for kind in self._marked()]
        return [
            f"const real u = scale * {output}, moved = theta[i] * keep + rate * u;",
            f"const int ok = finite_(moved){finite};",
            "theta[i] = ok ? moved : theta[i];",
            *(f"s{slot}[i] = ok ? {writes[slot]} : s{slot}[i];" for slot in whole),
            *marks,
            "left += !ok;",
        ]

    def _marked(self) -> list[Kind]:
        return [kind for kind in (_ROWS, _COLUMNS) if kind in self._kinds]

    def _loop(
        self, lines: Sequence[Line], kind: Kind, kept: Sequence[str], final: list[str], ends: set[str]
    ) -> str:
        here = {line.name for line in lines}
        wanted = dict.fromkeys(u for line in lines for u in line.uses) | dict.fromkeys(sorted(ends))
        body, nested = [], False
        for name in (name for name in wanted if name not in here):
            other = self._place[name][1]
            index = "i" if other == kind else _INDEX[other]
            nested |= index in ("r", "c")
            body.append(f"const real {name} = kept_{name}[{index}];")
        for line in lines:
            body.append(f"const real {line.name} = {line.text};")
            if line.name in kept:
                body.append(f"kept_{line.name}[i] = {line.name};")
        body += final
        nested = kind == _ALL and (nested or (bool(final) and bool(self._marked())))
        if nested:
            head = "for (ptrdiff_t r = 0, i = 0; r < rows; r++) for (ptrdiff_t c = 0; c < cols; c++, i++) {"
        else:
            head = f"for (ptrdiff_t i = 0; i < {_SIZE[kind]}; i++) {{"
        return "\n".join([f"    {head}", *(f"        {text}" for text in body), "    }"]) + "\n"

    def _reduced_state(self, writes: Sequence[str]) -> str:
        """State of a row, a column or the matrix is new where any of its coordinates moved."""
        text = ""
        for slot, (w, kind) in enumerate(zip(writes, self._kinds, strict=True)):
            if kind == _TENSOR:
                text += f"    s{slot}[0] = left < size ? kept_{w}[0] : s{slot}[0];\n"
            elif kind != _ALL:
                moved = f"any_{_INDEX[kind]}[i] > 0"
                text += f"    for (ptrdiff_t i = 0; i < {_SIZE[kind]}; i++) "
                text += f"s{slot}[i] = {moved} ? kept_{w}[i] : s{slot}[i];\n"
        return text

    def _scratch(self, kept: Sequence[str]) -> tuple[str, str]:
        """Declarations of the arrays in ``scratch``, and how much they take."""
        arrays = {f"kept_{name}": _SIZE[self._place[name][1]] for name in kept}
        arrays |= {f"any_{_INDEX[kind]}": _SIZE[kind] for kind in self._marked()}
        if any(", work" in call for call in self._calls.values()):
            arrays["work"] = "n + 2 * least * least"
        text, sizes = "", []
        for name, size in arrays.items():
            text += f"    real *const {name} = scratch{''.join(f' + {n}' for n in sizes)};\n"
            sizes.append(size)
        counts = [f"{sizes.count(size)} * {size}" for size in ("n", "rows", "cols", "1") if size in sizes]
        counts += [size for size in sizes if "least" in size]
        for kind in self._marked():
            name = f"any_{_INDEX[kind]}"
            text += f"    memset({name}, 0, (size_t){_SIZE[kind]} * sizeof(real));\n"
        return text, " + ".join(counts) or "0"
