"""Jobs over the local pool, a Dask cluster and Ray: the same results, and one line where a thing is amiss."""

import importlib.util
import os
import re
import socket
import threading
import time

import numpy as np
import pytest

from common.errors import L2OError
from common.machine import cores
from common.run import parallel as module
from common.run.parallel import check_cluster, parallel, threads_of_a_job

JOBS = [(k, np.arange(500.0) + k) for k in range(8)]  # the arrays are large enough for Dask to scatter


def need_dask():
    return pytest.importorskip("distributed", reason="distributed is not installed: .[dask]")


def cluster_of(workers: int):
    places = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    return need_dask().LocalCluster(n_workers=workers, **places)


def work(k, values):
    time.sleep(0.05)
    return k, float(values.sum()), os.getpid()


# Test modules cannot be imported by the workers everywhere; functions made in functions travel as they are.
def local(function):
    return lambda *given: function(*given)


@pytest.fixture(scope="module")
def dask():
    with cluster_of(2) as cluster:
        yield f"dask:{cluster.scheduler_address}"


def refused(cluster: str) -> str:
    started = time.monotonic()
    with pytest.raises(L2OError) as caught, parallel(2, cluster) as run:
        list(run(os.getpid, [()]))
    assert time.monotonic() - started < 5.0
    assert "\n" not in str(caught.value)
    return str(caught.value)


KNOWN = ["", "dask", "dask:tcp://10.0.0.7:8786", "dask:node-1.lab:8786", "dask:tls://[::1]:8786"]
KNOWN += ["ray:auto", "ray:ray://head:10001"]


@pytest.mark.parametrize("cluster", KNOWN)
def test_clusters_that_are_known(cluster, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    kind, _, address = cluster.partition(":")
    assert check_cluster(cluster) == (kind, address)


BROKEN = [
    "spark",
    "dask:",
    "Dask",
    "dask:auto",
    "dask:host",
    "dask:host:99999",
    "ray:a b:1",
    "dask:a:1\nb",
    "ray:",
]


@pytest.mark.parametrize("cluster", BROKEN)
def test_another_name_or_address_is_one_line(cluster, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(L2OError, match=r"^expected a cluster of the form dask, .*; leave it out for the"):
        check_cluster(cluster)


@pytest.mark.parametrize(
    ("cluster", "package", "extra"), [("dask", "distributed", "dask"), ("ray:auto", "ray", "ray")]
)
def test_without_the_package_the_message_names_the_extra(cluster, package, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(L2OError, match=rf"needs {package}, .*: python -m pip install .*\[{extra}\]"):
        check_cluster(cluster)


def test_cores_are_shared_out_unless_threads_are_given(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 8)
    assert [threads_of_a_job(0, jobs) for jobs in (1, 2, 3, 9)] == [8, 4, 2, 1]
    assert threads_of_a_job(5, 4) == 5
    assert threads_of_a_job(0, 4, "dask") == 2
    assert threads_of_a_job(0, 1, "dask:tcp://10.0.0.7:8786") == 1
    assert cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_local_pool_keeps_the_order_where_asked(jobs):
    with parallel(jobs, ordered=True) as run:
        results = list(run(local(work), JOBS))
    assert [result[:2] for result in results] == [(k, values.sum()) for k, values in JOBS]
    assert (os.getpid() in {pid for *_, pid in results}) == (jobs == 1)
    assert len({pid for *_, pid in results}) == jobs


def assert_like_the_local_pool(workers: int, cluster: str) -> None:
    """The same results, from two processes that are not this one."""
    with parallel(2) as run:
        pool = sorted(result[:2] for result in run(local(work), JOBS))
    with parallel(workers, cluster) as run:
        results = list(run(local(work), JOBS))
    assert sorted(result[:2] for result in results) == pool
    pids = {pid for *_, pid in results}
    assert len(pids) == 2 and os.getpid() not in pids


def test_a_dask_cluster_gives_what_the_local_pool_gives_and_both_workers_work(dask):
    assert_like_the_local_pool(1, dask)  # its workers count, not ours


@pytest.mark.slow
def test_ray_gives_what_the_local_pool_gives_and_both_workers_work():
    pytest.importorskip("ray", reason="ray is not installed")
    assert_like_the_local_pool(2, "ray")


def test_a_dask_cluster_keeps_the_order_where_asked(dask):
    with parallel(2, dask, ordered=True) as run:
        first = run(local(lambda k: (time.sleep(0.3 * (k == 0)), k)[1]), [(k,) for k in range(6)])
        assert list(first) == list(range(6))
        assert list(run(local(abs), [(-1,)])) == [1]  # once more on the same workers


def test_what_a_job_raises_arrives_as_it_is(dask):
    def bad(k):
        raise L2OError(f"job {k}: expected better; try again")

    for cluster in ("", dask):
        with parallel(2, cluster) as run, pytest.raises(L2OError) as caught:
            list(run(bad, [(k,) for k in range(4)]))
        assert re.fullmatch(r"job \d: expected better; try again", str(caught.value))


def test_parallel_work_inside_a_job_stays_in_its_worker(dask):
    def nested(k):
        with parallel(2) as run:
            return {os.getpid(), *run(os.getpid, [()] * 4)}

    with parallel(2, dask) as run:
        assert [len(pids) for pids in run(nested, [(0,), (1,)])] == [1, 1]


def test_a_cluster_started_here_ends_with_the_block_and_keeps_memory(monkeypatch):
    need_dask()
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)  # another cluster's
    environment = dict(os.environ)

    def look(k):
        time.sleep(0.2)
        return os.getpid(), os.environ.get("MALLOC_TRIM_THRESHOLD_")

    monkeypatch.delenv("SET_MEANWHILE", raising=False)
    with parallel(2, "dask") as run:
        monkeypatch.setenv("SET_MEANWHILE", "by another part of the program")
        pids, thresholds = zip(*run(look, [(k,) for k in range(6)]), strict=True)
    assert len(set(pids)) == 2 and set(thresholds) == {None}
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert dict(os.environ) == environment | {"SET_MEANWHILE": "by another part of the program"}


@pytest.mark.parametrize("ordered", [False, True])
def test_a_dask_cluster_is_given_a_few_jobs_at_a_time(dask, ordered):
    """The scheduler holds what a job carries, which may be a recording each."""
    given, taken, ahead = [], [], []

    def jobs():
        for k in range(20):
            given.append(k)
            yield (k,)

    with parallel(1, dask, ordered=ordered) as run:
        for result in run(abs, jobs()):
            taken.append(result)
            ahead.append(len(given) - len(taken))
    assert sorted(taken) == list(range(20)) and (not ordered or taken == sorted(taken))
    assert max(ahead) <= 2 * 2  # of two workers


class Unreadable:
    """Pickles, and cannot be read again: like a function of a package that a worker does not have."""

    def __reduce__(self):
        return int, ("no number",)


def test_a_job_a_worker_cannot_read_is_one_line_and_no_waiting(dask):
    with (
        parallel(2, dask) as run,
        pytest.raises(L2OError, match=r"a worker of the Dask cluster failed: .*; it"),
    ):
        list(run(local(print), [(Unreadable(),)]))


def test_a_worker_that_dies_is_one_line_and_no_waiting():
    need_dask()  # else what is set below ends with all its settings
    config = importlib.import_module("dask.config")
    once = config.set({"distributed.scheduler.allowed-failures": 0})
    lost = pytest.raises(L2OError, match="a worker of the Dask cluster failed: KilledWorker")
    with once, parallel(1, "dask") as run, lost:  # one worker, and yet not in this process
        list(run(os._exit, [(3,)]))


def test_a_scheduler_that_goes_is_one_line_and_no_waiting():
    with cluster_of(1) as cluster, parallel(1, f"dask:{cluster.scheduler_address}") as run:
        results = run(local(lambda k: time.sleep(0.1)), [(k,) for k in range(200)])
        next(results)
        cluster.close()
        with pytest.raises(L2OError, match="a worker of the Dask cluster failed"):
            list(results)


def test_a_scheduler_that_does_not_answer_is_one_line(monkeypatch):
    need_dask()
    monkeypatch.setattr(module, "TIMEOUT", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, but nobody listens
        address = f"dask:tcp://127.0.0.1:{free.getsockname()[1]}"
        assert "expected a Dask scheduler with workers at tcp://127.0.0.1" in refused(address)


def test_another_service_at_the_address_is_one_line(monkeypatch):
    distributed = need_dask()
    monkeypatch.setattr(distributed, "Client", lambda *_, **__: pytest.fail("took 20 s to go"))
    monkeypatch.setattr(module, "TIMEOUT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(1 << 16)

        thread = threading.Thread(target=answer)
        thread.start()
        message = refused(f"dask:127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert "start dask scheduler and dask worker there" in message


def test_a_scheduler_without_workers_is_one_line(monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 1.0)
    with cluster_of(0) as cluster:
        assert "expected a Dask scheduler with workers" in refused(f"dask:{cluster.scheduler_address}")


def test_a_ray_cluster_that_does_not_answer_is_one_line():
    pytest.importorskip("ray", reason="ray is not installed")
    assert "expected a Ray cluster at 127.0.0.1:9, got" in refused("ray:127.0.0.1:9")
