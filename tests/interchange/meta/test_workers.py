"""What processes that train together agree on; several are threads here, whose sums meet at a barrier."""

import dataclasses
import json
import threading
import types
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from common.errors import L2OError
from interchange.files.weights import Teacher
from interchange.meta.config import TrainConfig
from interchange.meta.sharing import check_share, mean_of_all, shared_out, told
from interchange.meta.workers import TIMEOUT, Alone, ElsewhereError, Place, Workers, lost, patience, place
from interchange.rule.rule import Rule
from interchange.rule.step_sizes import packed, unpacked


class Thread(Workers):
    """One of several threads; ``meeting`` has what each has brought, and a barrier."""

    def __init__(self, rank: int, size: int, meeting: types.SimpleNamespace) -> None:
        super().__init__(Place(rank, size))
        self._meeting = meeting

    def _sum(self, given: np.ndarray) -> np.ndarray:
        self._meeting.brought[self.rank] = given
        self._meeting.barrier.wait(60.0)
        found = np.sum(self._meeting.brought, 0)
        self._meeting.barrier.wait(60.0)
        return found

    def sum(self, tensors: Mapping[str, Any], numbers: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        return {name: self._sum(tensor) for name, tensor in tensors.items()}, self._sum(numbers)

    def spread(self, data: np.ndarray) -> np.ndarray:
        return self._sum(data if self.leads else 0 * data).astype(np.uint8)

    def device(self, name: str) -> str:
        return name

    def close(self) -> None:
        self._meeting.barrier.abort()


def each(size: int, body: Callable[[Workers], Any]) -> list[Any]:
    """What ``body`` gives each of ``size`` workers, or the error that it ends with."""
    meeting = types.SimpleNamespace(brought=[None] * size, barrier=threading.Barrier(size))

    def one(rank: int) -> Any:
        try:
            return body(Thread(rank, size, meeting))
        except L2OError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def test_a_place_is_read_from_the_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT", "TF_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    assert place("torch") == place("tf") == Place()
    monkeypatch.setenv("RANK", "2")
    assert place("torch") == Place()  # no cluster
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert place("torch") == Place(2, 3, 1)
    for name, value, words in (("RANK", "3", "RANK below WORLD_SIZE"), ("RANK", "x", "got RANK=x")):
        monkeypatch.setenv(name, value)
        with pytest.raises(L2OError, match=words):
            place("torch")
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    for task, rank in (({"type": "chief", "index": 0}, 0), ({"type": "worker", "index": "1"}, 2)):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
        assert place("tf") == Place(rank, 3)
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["a:1"]}, "task": {}}))
    assert place("tf") == Place()
    for text in (
        "{",
        "[]",
        json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 2}}),
        "9" * 99,
    ):
        monkeypatch.setenv("TF_CONFIG", text)
        with pytest.raises(L2OError, match="correct or unset it"):
            place("tf")


@pytest.mark.parametrize("text", ["", "2.5", "0", "soon", "nan", "1e9"])
def test_patience_is_a_number_of_seconds(text, monkeypatch):
    monkeypatch.setenv(TIMEOUT, text)
    if text in ("", "2.5"):
        assert patience() == float(text or 600.0)
        assert f"{patience():g} s ({TIMEOUT}): gone" in str(lost("[place in a source:3]  gone"))
    else:
        with pytest.raises(L2OError, match=f"{TIMEOUT}: expected seconds above 0, got {text}"):
            patience()


def test_what_the_first_knows_comes_to_all_as_it_was():
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True]), "c": np.zeros((0, 4))}
    meta = {"name": "ä", "values": [1, 2.5, None]}

    def body(workers: Workers) -> tuple[Any, Any]:
        return workers.broadcast(meta, arrays) if workers.leads else workers.broadcast(None)

    for own, found in each(3, body):
        assert own == meta and list(found) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
    assert Alone().broadcast(meta, arrays) == (meta, arrays) and Alone().broadcast(meta) == (meta, {})


@pytest.mark.parametrize("loaded", [Rule.named("adam"), Teacher.named("rp_s")], ids=["rule", "teacher"])
def test_what_is_tuned_comes_to_all_with_its_step_sizes(loaded):
    loaded = dataclasses.replace(loaded, step_sizes={"w": 0.5})
    for about, arrays in each(
        2, lambda workers: workers.broadcast(*packed(loaded) if workers.leads else (0,))
    ):
        found = unpacked(about, arrays)
        assert type(found) is type(loaded) and found.step_sizes == {"w": 0.5}
        assert found.sha256 == loaded.sha256
        if isinstance(loaded, Rule):
            assert found == loaded
        else:
            assert found.row == loaded.row
            for name, array in loaded.weights.items():
                np.testing.assert_array_equal(found.weights[name], array, strict=True)


@pytest.mark.parametrize("failing", [(), (0,), (2,), (1, 2), (0, 1)])
def test_where_one_fails_all_stop_and_one_says_why(failing):
    def body(workers: Workers) -> str:
        with workers.together():
            if workers.rank in failing:
                raise L2OError(f"worker {workers.rank}")
        return "went on"

    found = each(3, body)
    if not failing:
        assert found == ["went on"] * 3
        return
    for rank, error in enumerate(found):
        says = rank in failing and (rank == 0 or 0 not in failing)
        if says:
            assert str(error) == f"worker {rank}" and not isinstance(error, ElsewhereError)
        else:
            assert isinstance(error, ElsewhereError) and f"{len(failing)} of 3 workers failed" in str(error)


def test_means_are_over_the_optimizees_of_all_workers():
    """Of 1, 0 and 3 that did not diverge; the worker without one has no gradient."""
    weights, counts = {"w": np.zeros(2)}, (1, 0, 3)
    grads = ({"w": np.array([3.0, 0.0])}, {}, {"w": np.array([0.0, 8.0])})
    losses = (np.array([3.0, 6.0]), np.zeros(2), np.array([9.0, 0.0]))

    def body(workers: Workers) -> Any:
        k = workers.rank
        return mean_of_all(workers, weights, grads[k], losses[k], counts[k], 3 - counts[k], None)

    for means, loss, skipped, stopped in each(3, body):
        assert means["w"].tolist() == [0.75, 6.0] and loss.tolist() == [7.5, 1.5]
        assert (skipped, stopped) == (5, False)
    none = each(2, lambda workers: mean_of_all(workers, weights, {}, np.ones(2), 0, 1, None))
    assert [(row[0], row[2]) for row in none] == [({}, 2)] * 2


def test_a_signal_at_one_stops_all_with_its_exit_code():
    def body(workers: Workers) -> tuple[bool, int]:
        interrupt = types.SimpleNamespace(requested=workers.rank == 1, exit_code=130 if workers.rank else 0)
        stop = told(workers, interrupt)
        means = mean_of_all(workers, {}, {}, np.ones(1), 1, 0, interrupt)
        return stop, means[-1], interrupt.exit_code

    assert each(2, body) == [(True, True, 130)] * 2
    assert each(2, lambda workers: told(workers, None)) == [False, False]
    assert told(Alone(), types.SimpleNamespace(requested=True)) and not told(Alone(), None)


@pytest.mark.parametrize("keep", [False, True])
def test_pairs_are_shared_out_and_all_see_every_loss(keep):
    halves = [types.SimpleNamespace(pair=pair, number=2 * pair + k) for pair in range(3) for k in range(2)]

    def segments(mine: list, steps: int, keep: bool) -> Any:
        return [(f"of {half.number}" if keep else None, np.full(steps + 1, half.number)) for half in mine]

    for rank, rows in enumerate(
        each(2, lambda workers: list(shared_out(segments, workers)(halves, 3, keep)))
    ):
        assert [losses.tolist() for _, losses in rows] == [[float(half.number)] * 4 for half in halves]
        for half, (position, _) in zip(halves, rows, strict=True):
            own = half.pair % 2 == rank
            assert (position == f"of {half.number}") == (own and keep) and (keep or position is None)


def test_tasks_are_shared_out_evenly_or_refused():
    config = TrainConfig(tasks=4)
    assert [list(workers) for workers in each(3, lambda workers: workers.share(7))] == [
        [0, 3, 6],
        [1, 4],
        [2, 5],
    ]
    assert each(2, lambda workers: check_share(config, workers)) == [None] * 2
    refused = each(3, lambda workers: check_share(config, workers))
    assert all("a multiple of the 3 workers" in str(error) and "--tasks 6" in str(error) for error in refused)
    evolving = dataclasses.replace(config, estimator="es")
    assert each(3, lambda workers: check_share(evolving, workers)) == [None] * 3
