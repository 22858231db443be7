"""Views in a file of trajectories, and which tensors are drawn."""

import json

import numpy as np
import pytest

from common.data.coordinates import choose_tensors
from common.errors import L2OError
from interchange.files.whole import views_from, views_to
from interchange.language import view as views
from interchange.protocols import State

VIEWS = (
    views.canonical((5, 3)),
    views.vector((7,)),
    views.vector(()),
    views.matrix((6, 2, 3), (0,), parts=2),
    views.matrix((4, 3, 2), (1,), (0, 2)),
)


def test_views_come_back_from_their_text():
    texts = views_to(VIEWS)
    assert views_from(texts, [view.shape for view in VIEWS], "here") == VIEWS


WRONG = [
    *("3", "{}", "[1]", "[[5,3],[],[]]", "[[5,4],[-1],[]]", "[[5,3],[0],[]]", "[[5,3],[-3],[]]"),
    *("[[5,3],[-1,-1],[]]", "[[5,3],[-1],[-1]]", "[[5,3],[true],[]]", "[[5,3],[-1],2]"),
    *('[["5",3],[-1],[]]', "[[-5,-3],[-1],[]]"),
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_view_of_the_tensor_is_refused(text):
    json.loads(text)
    with pytest.raises(L2OError, match=r"here/params/matrix: expected \[\] or \[shape, rows, parts\]"):
        views_from([text], [(5, 3)], "here")


def test_tensors_are_drawn_whole_as_far_as_the_count_reaches():
    sizes, drawn = [30, 5, 0, 12, 8], set()
    for index in range(40):
        found = choose_tensors(sizes, 20, 0, index)
        assert np.array_equal(found, choose_tensors(sizes, 20, 0, index))
        tensors = tuple(np.unique(np.searchsorted(np.cumsum(sizes), found, side="right")))
        assert len(found) == sum(sizes[k] for k in tensors) <= 20 and 0 not in tensors
        drawn.add(tensors)
    assert len(drawn) > 1
    assert choose_tensors(sizes, 2, 0, 0).tolist() == [30, 31, 32, 33, 34]
    assert choose_tensors(sizes, 10**6, 0, 0).tolist() == list(range(55))


def test_a_thousand_arrays_of_state_come_back_in_their_order():
    state = State(3, tuple(range(1200)), tuple(range(2000, 3101)))
    named = dict(sorted(state.named().items()))
    assert State.from_named(3, named) == state
