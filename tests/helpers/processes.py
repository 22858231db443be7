"""Fresh Python processes."""

import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

ROOT = Path(__file__).parents[2]


def launched(words: list[str], **environment: str) -> subprocess.Popen:
    """``python WORDS``, with pipes of text."""
    pipes = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}
    return subprocess.Popen(
        [sys.executable, *words], env=os.environ | environment, cwd=ROOT, text=True, **pipes
    )


def started(code: str, *arguments: object, **environment: str) -> subprocess.Popen:
    """A process running ``code``."""
    return launched(["-c", code, *map(str, arguments)], **environment)


def said(code: str, *arguments: object, **environment: str) -> str:
    """What a fresh process prints; it may not die of a signal, nor of anything else."""
    process = started(code, *arguments, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, (process.returncode, err)
    return out.strip()
