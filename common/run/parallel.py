"""Independent jobs over a local pool of processes, or a Dask or Ray cluster, all through joblib.

What a job gets and gives back is pickled: functions of modules, arrays and dataclasses. Machines of a cluster
share no files, so a job carries its data, and must have this package installed. Workers run what they are
sent; use only schedulers you trust.
"""

import asyncio
import contextlib
import ctypes
import functools
import importlib.util
import itertools
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from common.errors import L2OError
from common.extras import missing
from common.machine import cores

_PR_SET_PDEATHSIG = 1
_AHEAD = 2  # jobs for each of Dask's workers at once
TIMEOUT = 10.0  # seconds for a scheduler to answer, and for its first worker to come
_FORM = re.compile(r"(dask|ray)(?::(.+))?", re.ASCII)
_ADDRESS = re.compile(r"(?:[a-z]+://)?\[?([\w.:-]+?)\]?:(\d{1,5})", re.ASCII)  # the host may be IPv6
_ENVIRONMENT = "distributed.nanny.pre-spawn-environ"
_PACKAGES = {"dask": "distributed", "ray": "ray"}

Run = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterator[Any]]


def check_cluster(cluster: str) -> tuple[str, str]:
    """``dask:tcp://host:8786`` -> (``dask``, address); "" for either that is not there. Connects to nothing.

    Raises:
        L2OError: a name or an address of another form, or the package is not installed.
    """
    if not cluster:
        return "", ""
    match = _FORM.fullmatch(cluster)
    kind, address = match.groups(default="") if match else ("", "")
    found = _ADDRESS.fullmatch(address)
    if not match or (
        address and not (found and int(found[2]) < 2**16) and (kind, address) != ("ray", "auto")
    ):
        raise L2OError(
            "expected a cluster of the form dask, dask:tcp://HOST:PORT, ray or ray:HOST:PORT, "
            f"got {cluster!r}; leave it out for the local pool"
        )
    package = _PACKAGES[kind]
    if importlib.util.find_spec(package) is None:
        raise L2OError(f"cluster {cluster!r} {missing(package)}")
    return kind, address


def threads_of_a_job(threads: int, jobs: int, cluster: str = "") -> int:
    """``threads`` if given, else the cores shared out among the jobs; 1 on machines that are not known."""
    return threads or (1 if ":" in cluster else max(1, cores() // jobs))


@contextlib.contextmanager
def parallel(jobs: int, cluster: str = "", *, ordered: bool = False) -> Iterator[Run]:
    """Workers for the time of a ``with`` block.

    Gives ``run(function, arguments)``, a generator of ``function(*a)`` for every ``a`` of ``arguments``: in
    their order, or each when it is there (with Ray all at the end). What a job raises is raised where results
    are taken.

    Args:
        jobs: worker processes, 1 for none but this one; a cluster that runs already has its own number.
        cluster: "" for the local pool; ``dask`` or ``ray`` for one started here, which ends with the block;
            ``dask:tcp://HOST:PORT`` or ``ray:HOST:PORT`` for one that runs.

    Raises:
        L2OError: a bad name, the package is missing, nobody answers within ``TIMEOUT``, a worker was killed.
    """
    from joblib import Parallel, delayed

    # A worker that had idled, or had grown, went as a job came: another one takes the job.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
    kind, address = check_cluster(cluster)
    with contextlib.ExitStack() as stack:
        if kind == "dask":
            yield stack.enter_context(_dask(jobs, address, ordered))
            return
        shape = "generator" if ordered else "generator_unordered"
        settings: dict[str, Any] = {"n_jobs": jobs, "max_nbytes": "1M", "batch_size": 1}
        if kind == "ray":
            settings["backend"] = stack.enter_context(_ray(jobs, address))
            settings["n_jobs"] = -1 if address else jobs
            shape = "list"  # all that its backend supports
        else:
            settings |= {"initializer": _end_with, "initargs": (os.getpid(),)}
        work = Parallel(return_as=shape, **settings)

        def run(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
            if kind:
                return iter(work(delayed(_alone)(function, given) for given in arguments))
            return work(delayed(function)(*given) for given in arguments)

        try:
            yield run
        except BrokenProcessPool as error:
            raise L2OError(
                f"a worker process ended ({type(error).__name__}), perhaps for want of memory; what is on "
                "disk is kept: give the same command with fewer --jobs"
            ) from error


def _end_with(parent: int) -> None:
    """Have this worker end once its parent has: one that was killed cannot end its workers itself."""
    # Linux does it at once, also while this process loads a library for seconds and runs no thread of Python.
    # The parent is then the thread that started it, which lives as long as what it waits for.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _alone(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """A job on a worker of a cluster: what it runs in parallel itself are threads, as in the local pool."""
    from joblib import parallel_config

    with parallel_config(backend="threading"):
        return function(*arguments)


def _told(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    """What a job gives or raises, so that what the cluster itself raises can be told from it."""
    try:
        return _alone(function, arguments), None
    except Exception as error:
        return None, error


@contextlib.contextmanager
def _dask(jobs: int, address: str, ordered: bool) -> Iterator[Run]:
    """``run`` on a Dask scheduler."""
    import dask
    from distributed import Client, LocalCluster, Security
    from distributed.comm import connect

    log = logging.getLogger("distributed")
    log.setLevel(
        max(log.level, logging.getLogger().level, logging.WARNING)
    )  # it would tell of every connection
    with contextlib.ExitStack() as stack:
        scheduler: Any = address
        try:
            if not address:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="l2o-dask-"))
                local = {"n_workers": jobs, "threads_per_worker": 1, "memory_limit": 0}
                local |= {"dashboard_address": "127.0.0.1:0", "local_directory": folder}
                # Dask has workers hand memory back at once, which made searches here five times slower.
                environment = dict(dask.config.get(_ENVIRONMENT))
                environment.pop("MALLOC_TRIM_THRESHOLD_", None)
                environment["TMPDIR"] = folder  # what killed workers leave goes with it
                before = dict(os.environ)
                with dask.config.set({_ENVIRONMENT: environment}):
                    scheduler = stack.enter_context(LocalCluster(**local))
                stack.callback(_restore, before, dict(os.environ))  # it sets what workers get here too
            else:  # a client that fails on what another service answers takes half a minute to go
                secrets = Security().get_connection_args("client")
                asyncio.run(connect(address, timeout=TIMEOUT, **secrets)).abort()
            client = stack.enter_context(Client(scheduler, timeout=TIMEOUT, set_as_default=False))
            client.wait_for_workers(1, timeout=TIMEOUT)
        except (OSError, RuntimeError, ValueError, MemoryError) as error:  # time-outs are OSErrors
            raise L2OError(
                f"expected a Dask scheduler with workers at {address or 'this machine'}, "
                f"got {_one_line(error)}; start dask scheduler and dask worker there"
            ) from error
        yield functools.partial(_results, client, ordered)


def _results(
    client: Any, ordered: bool, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]
) -> Iterator[Any]:
    """``run`` on a Dask client."""
    from distributed import as_completed

    jobs = (client.submit(_told, function, given, pure=False) for given in arguments)
    # A scheduler holds the data of the jobs it was given: they come a few at a time.
    waiting = list(itertools.islice(jobs, _AHEAD * len(client.scheduler_info()["workers"])))
    while waiting:
        future = waiting[0] if ordered else next(as_completed(waiting, loop=client.loop))
        waiting.remove(future)
        try:
            result, raised = future.result()
        except Exception as error:
            raise L2OError(
                f"a worker of the Dask cluster failed: {type(error).__name__}: {_one_line(error)}; "
                "it needs this version of symbolic-l2o, memory, and a scheduler that lives"
            ) from error
        if raised is not None:
            raise raised
        waiting.extend(itertools.islice(jobs, 1))
        yield result


@contextlib.contextmanager
def _ray(jobs: int, address: str) -> Iterator[str]:
    """Name of the backend that Ray registers with joblib."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    found = _ADDRESS.fullmatch(address)
    try:
        if found:  # Ray itself would try for minutes
            socket.create_connection((found[1], int(found[2])), TIMEOUT).close()
        import ray
        from ray.util.joblib import register_ray

        own = {} if address else {"num_cpus": jobs, "include_dashboard": False}
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **own)
    except (OSError, RuntimeError, ValueError) as error:
        raise L2OError(
            f"expected a Ray cluster at {address or 'this machine'}, got {_one_line(error)}; "
            "start one with ray start"
        ) from error
    try:
        register_ray()
        yield "ray"
    finally:
        ray.shutdown()


def _restore(before: dict[str, str], after: dict[str, str]) -> None:
    """Undo what has changed from ``before`` to ``after`` in the environment, and nothing else."""
    for name in set(before) | set(after):
        if before.get(name) != after.get(name):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
