"""Loads 1,000 hostile rule files under an audit hook; prints what happened as JSON. Run by test_rule_files.

``python tests/security/hostile_rules.py FOLDER``: its own process, because a hook cannot be taken off and
memory is to be measured from a clean start.
"""

import json
import random
import resource
import sys
import time
import warnings
from pathlib import Path

from common.errors import L2OError
from interchange.rule.rule import Rule

CASES = 1000
# Texts that are no expression.
REFUSED = (
    "__import__('os').system('touch CANARY')", "open('CANARY', 'w').write('x')", "__import__(os)",
    "().__class__.__base__.__subclasses__()", "g.__class__", "g.real", "g.__init__.__globals__",
    "exec('x=1')", "lambda: g", "(lambda: g)()", "(lambda g)(g)", "[g for g in g]", "tanh(g for g in g)",
    "[g for g in (1).__class__.mro()]", "tanh(*g)", "tanh(**g)", "tanh(x=g)", "(tanh)(tanh)(g)", "tanh(g)(g)",
    "g if g else g", "g and g", "not g", "g[0]", "{g}", "(g, g)", "f'{g}'", "f'{g.__class__}'",
    "'g'", "g := 1", "(g := 1)", "await g", "g # comment", "g\n+ g", "g\n;import os", "g; g", "g \\\n",
    "\x00", "g\x00", "ｇ", "g\u200b", "\u202eg", "1_0", "0x10", "0x7f", "1j", "1e400", "9" * 400, "9" * 9999,
    "g // 2", "g @ g", "g % 2", "~g", "+g", "True", "None", "...", "", " ", "(", ")",
    "(" * 300 + "g" + ")" * 300, "-" * 5000 + "g", "-" * 9999 + "g", "tanh(" * 100 + "g" + ")" * 100,
    "tanh(" * 1000 + "g" + ")" * 1000, "+".join(["g"] * 5000), "a" * 65, "_g", "__builtins__", "eval(g)",
    "exec(g)", "open(g)", "getattr(g, g)", "lag(g, 101)", "lag(g, -1)", "lag(g, g)", "lag(g, 99999999999)",
    "lag(g, 1e2)", "x" * 10_001,
)  # fmt: skip
ATTACKS = (
    *REFUSED, "(" * 200 + "g" + ")" * 200, "tanh(" * 99 + "g" + ")" * 99, "+".join(["g"] * 499),
    "*".join(["(g+g)"] * 300), "ema(g, 1)", "ema(g, tanh(g))", "sin(beta)", "E * g", "test(g)", "S(g)", "nan",
    "inf",
)  # fmt: skip
TOKENS = (
    "g", "c0", "c1", "m", "1", "-1e-3", "+", "-", "*", "/", "**", "(", ")", ",", "tanh", "ema", "lag", "pow",
)  # fmt: skip
VALUES = (
    "null", "true", "-0", "1e999", "NaN", "-Infinity", "9" * 5000, '""', '"x"', "[]", "{}", "[[[]]]",
    "1e-999", '{"__class__": 1}', '{"c0": {"c0": 1}}', "[" * 100_000, '"' + "a" * 200_000 + '"', '"\\ud800"',
    '"\\u0000"',
)  # fmt: skip
# Of names that no target may turn into code.
PIECES = (
    '"""', "\'\'\'", "\n", "\r", "\\", "import os", "os.system('x')", "{", "}", "{0}", "%s", "%(x)s", "#",
    "*/", "//", "<", ">", "&", "]]>", "-->", "\\end{document}", "$", "\x00", "\x1b[2J", "\u202e", "\u2028",
    "é", "😀", "\ufeff", '"', "'", "\\N{DASH}", "\\x41", "f'", "):", "    ", "\t", "NAME", "CONSTANTS",
    "__builtins__", "constants", "class A: pass", "\f", "\x85", ";",
)  # fmt: skip


def honest() -> dict:
    """A rule file's payload with everything in it, without its hash."""
    rule = Rule.from_text(
        "c0 * tanh(m / c1) + ema(g, c2) - lag(g, 2)",
        {"c0": -0.01, "c1": 0.5, "c2": 0.9},
        {"m": "ema_hat(g, 0.95) / (sqrt(ema_hat(square(g), 0.95)) + 1e-8)", "x": None},
        name="honest",
        provenance={"engine": "operon", "r2": {"valid": 0.9}},
    )
    return {key: value for key, value in json.loads(rule.to_json()).items() if key != "sha256"}


def hostile(number: int) -> bytes:
    """The content of file ``number``: an attack in a field, a broken structure, or mutated bytes."""
    draw = random.Random(number)
    payload = honest()
    text = json.dumps(payload)
    kind = number % 5
    if kind == 0:
        attack = draw.choice(ATTACKS)
        if draw.random() < 0.5:
            attack = " ".join(draw.choice(TOKENS) for _ in range(draw.randint(1, 30))) + attack[:50]
        place = draw.choice(("expression", "feature", "name", "constant", "feature name", "provenance"))
        if place in ("expression", "name"):
            payload[place] = attack
        elif place == "feature":
            payload["features"]["m"] = attack
        elif place == "provenance":
            payload["provenance"] = {attack: attack}
        else:
            table = payload["constants" if place == "constant" else "features"]
            table[attack] = 0.5 if place == "constant" else "g"
        return json.dumps(payload).encode()
    if kind == 1:
        key = draw.choice([*payload, "sha256", "__class__", "extra"])
        value = draw.choice(VALUES)
        marker = "@@"
        payload[key] = marker
        return json.dumps(payload).replace(f'"{marker}"', value).encode(errors="surrogatepass")
    if kind == 2:
        payload["expression"] = " ".join(draw.choice(TOKENS) for _ in range(draw.randint(1, 60)))
        return json.dumps(payload).encode()
    if kind == 3:
        data = bytearray(text.encode())
        for _ in range(draw.randint(1, 8)):
            at = draw.randrange(len(data))
            match draw.randrange(4):
                case 0:
                    data[at] ^= 1 << draw.randrange(8)
                case 1:
                    del data[at : at + draw.randint(1, 40)]
                case 2:
                    data[at:at] = data[at // 2 : at]
                case 3:
                    data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 9)))
        return bytes(data)
    match draw.randrange(6):
        case 0:
            return text.encode(draw.choice(("utf-16", "utf-32", "utf-8-sig")))
        case 1:
            payload["constants"] |= {f"c{i}": 0.5 for i in range(3, draw.choice((100, 30_000)))}
        case 2:
            payload["features"] |= {f"f{i}": "tanh(g) + 1" for i in range(draw.choice((50, 15_000)))}
        case 3:
            payload["expression"] = "+".join(["m * tanh(m)"] * draw.randint(1, 200))
        case 4:
            return (text[: draw.randrange(len(text))] + "{" * draw.randrange(3)).encode()
        case 5:
            return json.dumps(payload).replace('"name"', '"name": "a", "name"').encode()
    return json.dumps(payload).encode()


def main(folder: Path) -> None:
    """Write and load every case; one line of JSON."""
    path = folder / "rule.json"
    events: list[str] = []
    armed = [False]

    def hook(event: str, args: tuple) -> None:
        if not armed[0]:
            return
        own = event == "open" and (args[0] == str(path) or isinstance(args[0], int))
        # Text becomes a syntax tree by compile; running one is "exec".
        if (
            (own and args[1] in (None, "r", "rb"))
            or event == "compile"
            or event in ("os.scandir", "object.__getattr__", "sys._getframe")
        ):
            return
        events.append(f"{event} {str(args)[:80]}")

    sys.addaudithook(hook)
    armed[0] = True
    exec("control = 1")  # the hook has to see what it is there for
    open(folder / "other", "w").close()
    armed[0] = False
    control = sorted(event.split()[0] for event in events)
    events.clear()
    warnings.simplefilter("ignore")
    path.write_text(json.dumps(honest()))
    Rule.load(path)  # what is imported when first used
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    valid, errors, slow, odd = 0, 0, [], []
    for number in range(CASES):
        path.write_bytes(hostile(number))
        for _attempt in range(3):  # a slow file is slow every time
            start = time.process_time()
            armed[0] = True
            try:
                rule = Rule.load(path)
                outcome = "valid"
            except L2OError as error:
                outcome = "error"
                line = str(error)
                if "\n" in line or len(line) > 600 or "rule.json" not in line:
                    odd.append(f"{number}: {line[:200]!r}")
            finally:
                armed[0] = False
            seconds = time.process_time() - start
            if seconds <= 0.1:
                break
        else:
            slow.append(f"{number}: {seconds:.2f} s")
        if outcome == "valid":
            valid += 1
            if Rule.from_json(rule.to_json()) != rule:
                odd.append(f"{number}: does not survive its own file")
        errors += outcome == "error"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    report = {"valid": valid, "errors": errors, "slow": slow, "odd": odd, "events": events, "mib": grown}
    print(json.dumps(report | {"control": control}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
