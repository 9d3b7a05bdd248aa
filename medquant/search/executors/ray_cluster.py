"""Trials on a Ray cluster. What goes to a worker and comes back is JSON text; the ledger stays with the sweep.

Workers need medquant of the same version and the data at the same path. Where a sweep keeps runs or models, or shares float networks,
its folder must be one that all machines see.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import medquant
from medquant.errors import InputError, UsageError
from medquant.search.executors.base import Ended, Places, Watch
from medquant.search.trials import Outcome, Trial

_CONNECT_S, _JOIN_S = 10.0, 60.0
_LOOK_S = 0.3
"""How often epochs and stop requests are looked for."""

_NODES_LOOK_S, _NO_NODE_S = 5.0, 60.0
_SWEEP_NAME = "sweep.json"


@dataclass(frozen=True)
class Cluster:
    """Where trials run and what each is given.

    Args:
        address: ``auto`` (the cluster this machine belongs to), ``local`` (a cluster of this machine alone), ``HOST:PORT`` or ``ray://HOST:PORT``.
        cpus: processors of a trial.
        gpus: GPUs of a trial; a fraction shares one.
    """

    address: str
    cpus: float = 1.0
    gpus: float = 0.0


class RayCluster:
    """See :class:`medquant.search.executors.base.Executor`.

    Args:
        places: where trials find and leave things.
        watch: told of each epoch where trials are watched.
        stop_requested: True stops what runs.
        cluster: where.

    Raises:
        UsageError: Ray is not installed, the cluster cannot be reached, or none of its machines is large enough for a trial.
    """

    def __init__(self, places: Places, watch: Watch, stop_requested: Callable[[], bool], cluster: Cluster) -> None:
        self._places, self._watch, self._stop_requested, self._cluster = places, watch, stop_requested, cluster
        self._ray = _import_ray()
        _connect(self._ray, cluster.address)
        try:
            self.slots = self._fitting()
            if self.slots == 0:
                raise UsageError(
                    f"--cluster {cluster.address}: no machine of it has {cluster.cpus:g} processors and {cluster.gpus:g} GPUs for a trial; "
                    "lower --cpus-per-trial or --gpus-per-trial"
                )
            self._mailbox = self._open_mailbox()
            self._work = self._ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=0)(_make_work())
        except BaseException:
            self._ray.shutdown()
            raise
        self._running: dict[Any, Trial] = {}
        self._looked = self._fitted = time.monotonic()
        self._told_to_stop = False

    def submit(self, trial: Trial) -> None:
        """Hand a trial to the cluster, which runs it wherever there is room."""
        task = {
            "trial": trial.to_json(),
            "places": self._places.to_json(),
            "version": medquant.__version__,
            "sweep": _digest(Path(self._places.out) / _SWEEP_NAME),
        }
        self._running[self._work.remote(json.dumps(task), self._mailbox)] = trial

    def wait(self) -> Ended:
        """The next trial that ends.

        Raises:
            InputError: a worker cannot run trials (other medquant, no data), or no machine is left.
        """
        while True:
            self._exchange()
            done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_LOOK_S)
            if done:
                return self._end(done[0])
            self._check_machines()

    def close(self) -> None:
        """Give up what runs and leave the cluster."""
        for task in self._running:
            with contextlib.suppress(Exception):
                self._ray.cancel(task, force=True)
        self._running.clear()
        with contextlib.suppress(Exception):
            self._ray.kill(self._mailbox)
        self._ray.shutdown()

    def _end(self, task: Any) -> Ended:
        trial = self._running.pop(task)
        try:
            answer = json.loads(self._ray.get(task))
        except self._ray.exceptions.RayTaskError as error:
            raise InputError(f"{trial.name}: a worker of the cluster cannot run trials ({_first_line(error.cause or error)})") from error
        except self._ray.exceptions.RayError as error:
            # Its process or machine is gone: the sweep runs it once more, wherever there is room.
            return Ended(trial.id, Outcome("lost", error=f"{type(error).__name__}: {_first_line(error)}"))
        if "unfit" in answer:
            raise InputError(f"machine {answer['machine']} of the cluster: {answer['unfit']}")
        outcome = {**answer["outcome"], "document": {**answer["outcome"]["document"], "machine": answer["machine"]}}
        return Ended(trial.id, Outcome.from_json(outcome))

    def _exchange(self) -> None:
        """Answer the epochs that were reported, and pass on a stop request."""
        if self._stop_requested() and not self._told_to_stop:
            self._told_to_stop = True
            self._ray.get(self._mailbox.stop.remote())
        if self._places.watched:
            for trial_id, epoch, value in json.loads(self._ray.get(self._mailbox.take.remote())):
                self._ray.get(self._mailbox.answer.remote(trial_id, epoch, self._watch(trial_id, epoch, value)))

    def _check_machines(self) -> None:
        """A trial that no machine is left for would wait for ever."""
        now = time.monotonic()
        if now - self._looked < _NODES_LOOK_S:
            return
        self._looked = now
        if self._fitting() > 0:
            self._fitted = now
        elif now - self._fitted > _NO_NODE_S:
            raise InputError(f"--cluster {self._cluster.address}: no machine is left that a trial fits on; the same command goes on later")

    def _fitting(self) -> int:
        """How many trials the machines of the cluster hold."""
        resources = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(_holds(found, self._cluster) for found in resources)

    def _open_mailbox(self) -> Any:
        # On the sweep's own machine: it must outlive every worker.
        here = self._ray.get_runtime_context().get_node_id()
        pinned = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        mailbox = self._ray.remote(num_cpus=0, max_concurrency=10_000)(_make_mailbox()).options(scheduling_strategy=pinned).remote()
        self._ray.get(mailbox.stopped.remote(), timeout=_JOIN_S)
        return mailbox


def _holds(found: dict[str, float], cluster: Cluster) -> int:
    room = [int(found.get(name, 0.0) / wanted + 1e-6) for name, wanted in (("CPU", cluster.cpus), ("GPU", cluster.gpus)) if wanted > 0]
    return min(room, default=0)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    try:
        import ray
        import ray.util.scheduling_strategies
    except ModuleNotFoundError as error:
        raise UsageError('--cluster needs Ray, which is not installed here; pip install "medquant[cluster]"') from error
    return ray


def _connect(ray: Any, address: str) -> None:
    """Join a cluster, within a bounded time.

    Raises:
        UsageError: there is none at this address.
    """
    if address not in ("auto", "local"):
        _check_listening(address)
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address == "local":
        options["include_dashboard"] = False
    met: list[Exception] = []

    def join() -> None:
        try:
            ray.init(address=address, **options)
        except Exception as error:  # Ray raises many kinds; each means that the cluster cannot be used
            met.append(error)

    # In a thread: at an address where something else answers, Ray waits for a long time.
    joining = threading.Thread(target=join, daemon=True)
    if address == "local":
        join()  # what it starts would end with the thread that started it
    else:
        joining.start()
        joining.join(_JOIN_S)
    if joining.is_alive():
        raise UsageError(f"--cluster {address}: no answer as of a Ray cluster within {_JOIN_S:g} s; check the address")
    if met:
        raise UsageError(f"--cluster {address}: cannot be used ({_first_line(met[0])}); check the address, and that versions of Ray agree")


def _check_listening(address: str) -> None:
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        host, port = place.hostname, place.port
    except ValueError:
        host, port = None, None
    if host is None or port is None or place.scheme not in ("", "ray"):
        raise UsageError(f"--cluster {address}: expected auto, local, HOST:PORT or ray://HOST:PORT")
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            pass
    except OSError as error:
        raise UsageError(f"--cluster {address}: nothing answers there ({error}); start Ray there, or correct it") from error


def _make_work() -> Callable[[str, Any], str]:
    """What a worker does; made here, so that Ray sends it whole and a worker without medquant can say so."""

    def work(text: str, mailbox: Any) -> str:
        import json
        import platform

        machine = platform.node()
        task = json.loads(text)
        try:
            import medquant as theirs
            from medquant.search.executors.on_worker import run_on_worker
        except ImportError as error:
            return json.dumps({"machine": machine, "unfit": f"medquant with its sweep cannot be imported there ({error}); install it"})
        if theirs.__version__ != task["version"]:
            found = f"medquant is {theirs.__version__} there and {task['version']} here; install the same"
            return json.dumps({"machine": machine, "unfit": found})
        return json.dumps({"machine": machine, **run_on_worker(task, mailbox)})

    return work


def _make_mailbox() -> type:
    """The actor through which trials report epochs and hear answers and stop requests."""

    class Mailbox:
        def __init__(self) -> None:
            self._reports: list[tuple[str, int, float]] = []
            self._answers: dict[tuple[str, int], Any] = {}
            self._stopped = False

        async def report(self, trial_id: str, epoch: int, value: float) -> bool:
            import asyncio

            answer = asyncio.get_running_loop().create_future()
            self._answers[trial_id, epoch] = answer
            self._reports.append((trial_id, epoch, value))
            return bool(await answer)

        async def take(self) -> str:
            import json

            taken, self._reports = self._reports, []
            return json.dumps(taken)

        async def answer(self, trial_id: str, epoch: int, ends: bool) -> None:
            waiting = self._answers.pop((trial_id, epoch), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(ends)

        async def stop(self) -> None:
            self._stopped = True

        async def stopped(self) -> bool:
            return self._stopped

    return Mailbox


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
