"""What a worker of a cluster does with a trial: sees whether it can run here, and runs it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medquant.search.executors.base import Places
from medquant.search.run_trial import run_trial
from medquant.search.trials import Trial

_ASK_S = 1.0
"""How often a trial asks whether it is to stop."""


def run_on_worker(task: Mapping[str, Any], mailbox: Any) -> dict[str, Any]:
    """Run a trial.

    Args:
        task: ``trial`` and ``places`` as JSON values; ``sweep``, the digest of the sweep's own file.
        mailbox: Ray actor with ``report`` and ``stopped``.

    Returns:
        ``outcome`` as JSON values, or ``unfit``: why no trial of this kind can run on this machine.
    """
    import ray

    trial, places = Trial.from_json(task["trial"]), Places(**task["places"])
    unfit = _unfit(trial, places, str(task["sweep"]))
    if unfit:
        return {"unfit": unfit}
    asked, stopped = 0.0, False

    def stop_requested() -> bool:
        nonlocal asked, stopped
        if not stopped and time.monotonic() - asked > _ASK_S:
            stopped, asked = bool(ray.get(mailbox.stopped.remote())), time.monotonic()
        return stopped

    def report(epoch: int, value: float) -> bool:
        return bool(ray.get(mailbox.report.remote(trial.id, epoch, value)))

    return {"outcome": run_trial(trial, places, report if places.watched else None, stop_requested).to_json()}


def _unfit(trial: Trial, places: Places, sweep: str) -> str:
    data = trial.config["data"]["path"]
    if data is not None and not Path(data).exists():
        return f"the data {data} are not there; put them at the same path on every machine"
    if not (trial.keep != "scores" or trial.is_float or trial.float_id):
        return ""
    file = Path(places.out) / "sweep.json"
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    if found == sweep:
        return ""
    return f"the folder of the sweep {places.out} is not seen there; choose an --out that all share, or keep scores only"
