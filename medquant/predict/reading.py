"""A scan read so that it needs no memory of its own: its voxels stay in its file, or go into a scratch folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medquant.data.grids import lay_on
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, Volume
from medquant.errors import InputError
from medquant.predict.scans import Scan


@dataclass(frozen=True)
class ReadScan:
    """A scan that was read.

    Args:
        case: image and further channels; no mask.
        modality: ``CT`` or ``MR`` where the files say so, "" elsewhere.
    """

    case: Case
    modality: str


def read_scan(scan: Scan, channels: int, scratch: ArrayCache) -> ReadScan:
    """Read the channels of a scan as training does.

    Args:
        scan: what to read.
        channels: how many the model takes.
        scratch: a cache of its own for this scan.

    Raises:
        InputError, GeometryError: a file is refused by its reader, or there are more or fewer channels.
        UsageError: the scratch folder cannot be written.
    """
    modality = ""
    if scan.kind == "dicom":
        from medquant.data.dicom.slabs import open_dicom_series

        series = open_dicom_series(scan.paths[0], scratch, name=scan.label)
        volumes, modality = [series.volume], series.modality
    else:
        volumes = [volume for path in scan.paths for volume in _channels(path, scan, scratch)]
    if len(volumes) != channels:
        raise InputError(
            f"{scan.label}: found {_count(len(volumes))}, the model takes {_count(channels)}; give the scans it was made for"
            + (", as case_0000, case_0001 .." if channels > 1 else "")
        )
    image = volumes[0]
    names = [str(path) for path in scan.paths] if len(scan.paths) == channels else [scan.label] * channels
    further = tuple(lay_on(each, image, (name, names[0]), scratch)[0] for each, name in zip(volumes[1:], names[1:], strict=True))
    return ReadScan(Case(id=scan.name, subject="", site="", image=image, mask=None, source=scan.label, further_channels=further), modality)


def scan_sha256(scan: Scan) -> str:
    """Digest over the bytes of the scan's files.

    Raises:
        InputError, GeometryError: a file cannot be read, or the folder holds no series.
    """
    if scan.kind == "dicom":
        from medquant.data.dicom.slabs import series_files

        return ArrayCache(None).files_digest(series_files(scan.paths[0], name=scan.label))
    return ArrayCache(None).files_digest(scan.paths)


def _channels(path: Path, scan: Scan, scratch: ArrayCache) -> tuple[Volume, ...]:
    if scan.kind == "nifti":
        from medquant.data.nifti_slabs import open_nifti_channels

        return open_nifti_channels(path, scratch)
    if scan.kind == "png":
        from medquant.data.png import read_png

        return (scratch.keep(f"png {path}", lambda: read_png(path)),)
    from medquant.data.tiff import read_tiff_stack

    return (scratch.keep(f"tiff {path}", lambda: read_tiff_stack(path)),)


def _count(channels: int) -> str:
    return f"{channels} channel{'' if channels == 1 else 's'}"
