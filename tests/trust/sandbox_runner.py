"""Types one command an attack, each in a process of its own that is watched: ``python sandbox_runner.py FOLDER RUN NAMES.json``.

Everything is imported once; then each attack runs in a fork. An audit hook (PEP 578) notes what no command may do: load a
pickle, start a program, open a connection, write or remove outside its output folder, read what lies outside its input.
One JSON line an attack goes to stdout.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import signal
import stat
import sys
import time
from pathlib import Path

import hostile_datasets  # noqa: F401
import hostile_runs  # noqa: F401
import hostile_scans  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure
import nibabel.nifti1  # noqa: F401
import pydicom.pixels  # noqa: F401
import skimage.measure  # noqa: F401
import small_sessions
import torch.utils.tensorboard  # noqa: F401
from attack import ATTACKS, Arguments, Ground, nifti_file
from watch import Watch, outputs

import medquant.cli.main as command_line
import medquant.data.dicom.series
import medquant.data.inspection
import medquant.report.plots
import medquant.train.coarse
import medquant.train.planning  # noqa: F401

MOST_SECONDS = 10.0
_KILLED_AFTER_S = 40.0
_MEMORY_BYTES = 6 * 2**30


def main(folder: Path, run: Path, names: list[str]) -> None:
    """Run the attacks one after the other."""
    with small_sessions.small_world():
        _warm_up(folder / "first", run)
        # What is there already need not be looked through, and copied, in every fork.
        gc.collect()
        gc.freeze()
        for place, name in enumerate(names):
            ground = Ground(folder / f"{place:03d}", run)
            print(json.dumps({"name": name, **_watched(ground, name)}), flush=True)


def _warm_up(folder: Path, run: Path) -> None:
    """Let the libraries import and set up what they do on first use, which belongs to no attack."""
    matplotlib.backends.backend_agg.FigureCanvasAgg(matplotlib.figure.Figure()).draw()
    copy = Ground(folder, run).copied_run()
    session = small_sessions.resume_small(copy)
    session.run()
    small_sessions.finish_small(session)


def _watched(ground: Ground, name: str) -> dict[str, object]:
    """Fork, wait, kill what does not end, compare the files."""
    ground.folder.mkdir(parents=True)
    (ground.outside / "notes.txt").write_text("untouched")
    nifti_file(ground.outside / "secret.nii")
    os.environ["MEDQUANT_CACHE"] = str(ground.folder / "cache")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            _attacked(ground, name)
        os._exit(99)
    deadline = time.monotonic() + _KILLED_AFTER_S
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            status = -1
            break
        time.sleep(0.005)
    report: dict[str, object] = {"code": "killed", "stderr": "", "stdout": "", "seconds": _KILLED_AFTER_S, "grown_mb": 0.0, "done": []}
    with contextlib.suppress(OSError, ValueError):
        report = json.loads((ground.folder / "report.json").read_text())
    report["canary"] = ground.canary.exists()
    report["exit"] = status
    return report


def _attacked(ground: Ground, name: str) -> None:
    """In the fork: plant the files, then type the command, watched."""
    arguments = ATTACKS[name].make(ground)
    before = _listing(ground, arguments)
    os.chdir(ground.work)
    for number in (1, 2):
        os.dup2(os.open(ground.folder / f"said{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    noted: list[str] = []
    _limit_memory()
    Path("/proc/self/clear_refs").write_text("5")
    idle = _status_kib("VmRSS")
    sys.addaudithook(Watch(ground, arguments, noted))
    # Of the processor, because how long it takes depends on who else works on the machine.
    started = time.process_time()
    code = _type(arguments)
    seconds = time.process_time() - started
    grown_mb, done = (_status_kib("VmHWM") - idle) / 1024, list(noted)
    report = {
        "code": code,
        "seconds": round(seconds, 3),
        "grown_mb": round(grown_mb, 1),
        "stdout": (ground.folder / "said1").read_text(errors="backslashreplace"),
        "stderr": (ground.folder / "said2").read_text(errors="backslashreplace"),
        "done": done,
        "changed": sorted(_listing(ground, arguments).items() ^ before.items()),
    }
    (ground.folder / "report.json").write_text(json.dumps(report))
    os._exit(0)


def _type(arguments: Arguments) -> object:
    sys.argv = ["medquant", *(str(argument) for argument in arguments)]
    try:
        command_line.main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        return 0 if end.code is None else end.code
    return "returned"


def _limit_memory() -> None:
    """A bomb shall end its own process, not the machine."""
    import resource

    used = _status_kib("VmSize") * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, used + _MEMORY_BYTES))


def _status_kib(key: str) -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))


def _listing(ground: Ground, arguments: Arguments) -> dict[str, str]:
    """Every file outside output and cache, with what it holds."""
    found = {}
    outs = outputs(ground, arguments)
    for place in (ground.inside, ground.outside, ground.work):
        for entry in sorted(place.rglob("*")):
            if any(entry.is_relative_to(out) for out in outs) and not ground.out.is_symlink():
                continue
            state = entry.lstat()
            content = hashlib.sha256(entry.read_bytes()).hexdigest()[:12] if stat.S_ISREG(state.st_mode) else ""
            found[str(entry.relative_to(ground.folder))] = f"{stat.S_IFMT(state.st_mode):o} {content}"
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), json.loads(Path(sys.argv[3]).read_text()))
