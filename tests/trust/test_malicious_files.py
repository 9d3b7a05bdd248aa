"""Files by somebody who means harm, given to the commands that read them: nothing is run, nothing lands elsewhere, all ends soon.

Each attack is typed in a process of its own, watched by an audit hook, with a canary that every payload would make; see
``sandbox_runner.py``. What is expected of each attack stands beside its maker in the modules ``hostile_*``.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile_datasets
import hostile_runs
import hostile_scans
import numpy as np
import pytest
import small_sessions
import torch
from attack import ATTACKS, REFUSED, Ground, deflated_zeros, object_array, pickled, torch_archive

MOST_SECONDS, MOST_GROWTH_MB, MOST_LINES = 10, 300, 25
MODULES = (hostile_scans, hostile_datasets, hostile_runs)

QUICK = 20
"""Of the attacks, every so many-th is in the default run, besides those of :data:`ALWAYS`."""

ALWAYS = (
    *("pickle named .nii", "npy of objects named .nii", "pickle behind the DICOM preamble", "cache of arrays that hold objects"),
    *("gzip bomb of 768 MiB", "TIFF Deflate bomb of 1.75 GiB", "TIFF of 100 000 pages", "PNG bomb of 320 MiB, 16 bits"),
    *("DICOM slice that is a pipe", "DICOM sequences 20 000 deep", "a pipe to inspect", "a scan whose name commands the terminal"),
    *("spinal image that is a pipe, inspect", "spinal image that is a link to /dev/zero, inspect", "cache of pipes"),
    *("dataset.json that climbs out", "imagesTr that is a link out of the folder", "prepare into a link that leads away"),
    *("YAML tag that calls a function", "YAML aliases that grow a billionfold", "configuration of 60 000 unknown keys"),
    *("run.json that is a pipe", "run.json 100 000 levels deep", "run.json of infinite schema", "eval.json of odd types"),
    *("eval.json whose names are formulas, markup and commands", "run folder whose pictures/ leads away"),
    *("run.json whose cache lies elsewhere", "tensors that are a pickle", "model of 2^20 size multiple, eval"),
    *("model that asks for pixels of a nanometre, eval", "model that is a torch archive, eval"),
)
"""Attacks that are always made: those that once succeeded, and those everybody asks about."""

Outcome = dict[str, Any]


def chosen(slow: bool) -> list[str]:
    """Names of the attacks of the default run, or of those left to the slow one."""
    default = {*ALWAYS, *list(ATTACKS)[::QUICK]}
    return [name for name in ATTACKS if (name not in default) == slow]


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[bool, dict[str, Outcome]]:
    """What came of the attacks, by whether they are slow; filled when first asked for."""
    return {}


def outcome(name: str, outcomes: dict[bool, dict[str, Outcome]], slow: bool, factory: pytest.TempPathFactory, repository: Path) -> Outcome:
    if slow not in outcomes:
        outcomes[slow] = _attacked(chosen(slow), factory, repository)
    return outcomes[slow][name]


def _attacked(names: list[str], factory: pytest.TempPathFactory, repository: Path) -> dict[str, Outcome]:
    run = small_sessions.finished_run(factory.getbasetemp())
    folder = factory.mktemp("attacks")
    (folder / "names.json").write_text(json.dumps(names))
    here = Path(__file__).parent
    paths = os.pathsep.join(str(place) for place in (repository, here.parent, here))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}
    command = [sys.executable, str(here / "sandbox_runner.py"), str(folder / "grounds"), str(run), str(folder / "names.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=1800)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(names), done.stderr[-2000:]
    return {each["name"]: each for each in found}


def check(name: str, found: Outcome) -> None:
    assert not found["canary"], "the payload was run"
    assert found["done"] == []
    assert found["changed"] == []
    assert found["code"] in ATTACKS[name].codes, found["stderr"][-2000:]
    assert ATTACKS[name].words in found["stderr"]
    assert found["seconds"] < MOST_SECONDS
    assert found["grown_mb"] < MOST_GROWTH_MB
    said = found["stderr"]
    assert "Traceback" not in said
    if found["code"]:
        complaint = said[said.rindex("medquant: ") :]
        assert len(complaint.splitlines()) <= MOST_LINES
        assert len(complaint) < 8000
    shown = said + found["stdout"]
    assert [each for each in shown if not each.isprintable() and each not in "\n\t"] == []


@pytest.mark.parametrize("name", chosen(slow=False))
def test_an_attack_fails(
    name: str, outcomes: dict[bool, dict[str, Outcome]], tmp_path_factory: pytest.TempPathFactory, repository: Path
) -> None:
    check(name, outcome(name, outcomes, False, tmp_path_factory, repository))


@pytest.mark.slow
@pytest.mark.parametrize("name", chosen(slow=True))
def test_a_further_attack_fails(
    name: str, outcomes: dict[bool, dict[str, Outcome]], tmp_path_factory: pytest.TempPathFactory, repository: Path
) -> None:
    check(name, outcome(name, outcomes, True, tmp_path_factory, repository))


def test_there_are_enough_attacks() -> None:
    assert len([name for name, each in ATTACKS.items() if each.codes <= REFUSED]) >= 150
    assert len(chosen(slow=False)) >= 40


# --- the attacks are ones ---------------------------------------------------------------------------------------------


def test_the_payloads_work_where_they_are_let(tmp_path: Path) -> None:
    """Each makes its canary in a program that loads it: that none does in medquant is no accident."""
    ground = Ground(tmp_path, tmp_path)
    loads = (
        lambda: pickle.loads(pickled(ground)),
        lambda: np.load(io.BytesIO(object_array(ground)), allow_pickle=True),
        lambda: torch.load(io.BytesIO(torch_archive(ground)), weights_only=False),
    )
    for load in loads:
        load()
        assert ground.canary.exists()
        ground.canary.unlink()


def test_the_bombs_are_as_large_as_they_say() -> None:
    import zlib

    for wbits in (31, 15, -15):
        packed = deflated_zeros(2**26, wbits)
        assert len(packed) < 2**17
        unpacked = zlib.decompressobj(wbits).decompress(packed, 2**27) if wbits == -15 else _forgiving(packed, wbits)
        assert unpacked.count(0) == len(unpacked) == 2**26


def _forgiving(packed: bytes, wbits: int) -> bytes:
    """All that comes before the checksum, which is wrong."""
    import zlib

    return zlib.decompressobj(wbits).decompress(packed[: -8 if wbits == 31 else -4])


def test_the_watch_sees_what_is_forbidden(tmp_path: Path, repository: Path) -> None:
    """The hook of the sandbox, shown one of each forbidden deed."""
    here = Path(__file__).parent
    script = (
        "import sys, os, pickle, socket, subprocess\nfrom pathlib import Path\nfrom attack import Ground, pickled\n"
        "from watch import Watch\nground, noted = Ground(Path(sys.argv[1]), Path(sys.argv[1])), []\n"
        "places = ground.work, ground.inside, ground.outside\n(ground.outside / 'x').write_text('x')\n"
        "sys.addaudithook(Watch(ground, ['inspect'], noted))\nos.mkdir(ground.out)\n"
        "(ground.out / 'fine').write_text('x'); subprocess.run(['git', '--version'], capture_output=True)\nfirst = noted[:]\n"
        "(ground.outside / 'x').read_text(); (ground.work / 'y').write_text('y'); (ground.work / 'y').rename(places[1] / 'z')\n"
        "(ground.work / 'in').exists(); (places[1] / 'z').unlink(); pickle.loads(pickled(ground)); subprocess.run(['true'])\n"
        "s = socket.socket(); s.settimeout(0.01); s.connect_ex(('127.0.0.1', 9)); s.close()\n"
        "print(*first, *sorted({each.split()[0] for each in noted}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (repository, here.parent, here))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=environment, check=False)
    wanted = "open os.remove os.rename os.system pickle.find_class read socket.connect subprocess.Popen"
    assert done.stdout.split() == wanted.split(), done.stderr[-1000:]
