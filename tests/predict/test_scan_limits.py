"""One scan within its memory, its folders and its disk. Expected: the mask without limits, and nothing left where there is none."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
from scan_runs import run, scan_file, stored
from small_models import model_file, unet

from medquant.data import atomic
from medquant.data.prepared_grid import GridRule
from medquant.errors import InputError, UsageError
from medquant.predict import one_scan as one_scan_module
from medquant.predict.working_set import parse_bytes

# --- memory -----------------------------------------------------------------------------------------------------------


def test_little_memory_gives_the_same_mask_and_very_little_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_scan_module, "_SMALL_THINGS_BYTES", 0)
    model = model_file(tmp_path / "m.mq", unet(5, width=8))
    scan_file(tmp_path / "a.nii.gz", (150, 140, 3))
    # 3.6 MB for weights, slices and mask; 12.3 MB for the network on a slice, 1.1 MB on its smallest exact tile, 0.6 MB on any.
    masks = {}
    for allowed in (None, 10_000_000, 4_400_000):
        _, said = run(model, tmp_path / "a.nii.gz", tmp_path / f"{allowed}.nii.gz", max_memory_bytes=allowed)
        masks[allowed] = stored(tmp_path / f"{allowed}.nii.gz")
        narrow = any("the network saw less around each voxel than it looks at; the mask may differ" in line for line in said)
        assert narrow == (allowed == 4_400_000)
    np.testing.assert_array_equal(masks[10_000_000], masks[None])
    with pytest.raises(UsageError, match=r"--max-memory 4MB is too little: this model needs at least \d+ MB for this scan") as refused:
        run(model, tmp_path / "a.nii.gz", tmp_path / "none.nii.gz", max_memory_bytes=3_700_000)
    assert not list(tmp_path.glob("*none*"))
    advised = re.search(r"give --max-memory (\d+MB) or more", str(refused.value))
    assert advised is not None
    run(model, tmp_path / "a.nii.gz", tmp_path / "advised.nii.gz", max_memory_bytes=parse_bytes(advised[1]))


def test_nothing_stays_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    model = model_file(tmp_path / "m.mq", grid=GridRule("axial", (1.1, 1.1)))
    scan_file(tmp_path / "a.nii.gz")
    run(model, tmp_path / "a.nii.gz", tmp_path / "out.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:-900])
    with pytest.raises(InputError, match=r"a\.nii\.gz: cut short or damaged"):
        run(model, tmp_path / "a.nii.gz", tmp_path / "broken.nii.gz")
    assert not list((tmp_path / "scratch").iterdir())
    assert not (tmp_path / "broken.nii.gz").exists()


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_outputs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    model = model_file(tmp_path / "m.mq")
    scan = scan_file(tmp_path / "a.nii.gz")
    (tmp_path / "there.nii.gz").write_bytes(b"someone's work")
    (tmp_path / "folder").mkdir()
    cases = [
        ("there.nii.gz", "exists; give --overwrite"),
        ("a.nii.gz", "is the scan itself"),
        ("folder", "is a folder, expected a file name"),
        ("out.dcm", "a DICOM segmentation refers to the slices of a DICOM series"),
        ("out.png", r"out\.png: found the ending \.png, expected one that says what to write: \.nii\.gz, .*; for example out\.nii\.gz"),
        ("out", "out: found no ending, expected one that says what to write"),
        ("nowhere/out.nii.gz", "does not exist; make it first"),
    ]
    for name, words in cases:
        with pytest.raises(UsageError, match=words):
            run(model, scan, tmp_path / name)
    with pytest.raises(UsageError, match="is the scan itself"):
        run(model, scan, tmp_path / "a.nii.gz", overwrite=True)
    with pytest.raises(UsageError, match="its ending means nifti, but --format tiff was given"):
        run(model, scan, tmp_path / "out.nii.gz", mask_format="tiff")
    with pytest.raises(UsageError, match="unknown format 'nrrd'"):
        run(model, scan, tmp_path / "out.nii.gz", mask_format="nrrd")
    with pytest.raises(UsageError, match="--resume goes with a folder"):
        run(model, scan, tmp_path / "out.nii.gz", resume=True)
    assert (tmp_path / "there.nii.gz").read_bytes() == b"someone's work"
    run(model, scan, tmp_path / "there.nii.gz", overwrite=True)
    assert stored(tmp_path / "there.nii.gz").shape == (45, 38, 7)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_file(tmp_path / "m.mq")
    scan = scan_file(tmp_path / "a.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m.nii.gz").write_bytes(b"before")
    fsync = os.fsync

    def full(descriptor: int) -> None:
        # The scratch folder has room, the folder of the mask has none.
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(tmp_path / "out"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(UsageError, match=r"m\.nii\.gz: cannot be written \(No space left on device\)"):
        run(model, scan, tmp_path / "out" / "m.nii.gz", overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.nii.gz"]
    assert (tmp_path / "out" / "m.nii.gz").read_bytes() == b"before"

    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", no_room)
    with pytest.raises(UsageError, match="set TMPDIR to a folder with more room"):
        run(model, scan, tmp_path / "out" / "n.nii.gz")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.nii.gz"]
