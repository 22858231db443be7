"""A limit of effort that knows no clock: how many functions are called, the same on every machine."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def few_calls(limit: int) -> Iterator[None]:
    """Fails as soon as more than ``limit`` functions, of Python or of C, have been called in this thread."""
    called = 0

    def count(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal called
        called += event in ("call", "c_call")
        if called > limit:
            sys.setprofile(None)
            raise AssertionError(f"expected at most {limit} calls")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
