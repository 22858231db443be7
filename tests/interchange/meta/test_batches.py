"""A caller's mini-batches: lists are counted round, loaders are run through anew."""

from collections.abc import Iterator

import pytest

from interchange.meta.tasks import Batches


class Loader:
    """Three batches a pass, which tell of the pass and their place."""

    passes = -1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        self.passes += 1
        number = self.passes
        return ((number, place) for place in range(3))


@pytest.mark.parametrize("kind", [list, tuple, iter], ids=str)
def test_what_is_there_once_is_counted_round(kind):
    batches = Batches(kind([("a", 0), ("b", 1)]))
    assert [batches.at(step)[0] for step in (0, 1, 2, 5, 0)] == ["a", "b", "a", "b", "a"]


def test_a_loader_is_run_through_anew_at_every_pass():
    batches = Batches(Loader())
    found = [batches.at(step) for step in range(7)]
    assert [place for _, place in found] == [0, 1, 2, 0, 1, 2, 0]
    first, second, third = found[0][0], found[3][0], found[6][0]
    assert first < second < third and [number for number, _ in found[:3]] == [first] * 3
    assert batches.at(6) == batches.at(6) == found[6]  # as of lanes, and of a Hessian
    again = batches.at(0)
    assert again[1] == 0 and again[0] > third


@pytest.mark.parametrize(
    "nothing", [[], iter(()), range(0), {}.values()], ids=["list", "iterator", "range", "view"]
)
def test_no_batch_is_an_error_at_once(nothing):
    with pytest.raises(ValueError, match="at least one"):
        Batches(nothing)
