"""Ways to spoil a good series, each with the words its refusal must hold."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from dicom_builder import ENHANCED_CT, Series, edit_file, random_series, save, turned_axes, write
from pydicom.dataset import FileDataset
from pydicom.uid import UID, JPEGLSLossless, RLELossless, generate_uid

from medquant.errors import GeometryError, InputError


@dataclass
class Spoiled:
    """``named``: names of files of which the message must call at least one, all of them where ``all_named``."""

    kind: type[Exception]
    words: str
    named: list[Path]
    all_named: bool = False


@dataclass
class Ground:
    """A good series on the disk, its paths in order of position."""

    folder: Path
    series: Series
    paths: list[Path]
    rng: np.random.Generator

    def pick(self) -> Path:
        return self.paths[int(self.rng.integers(len(self.paths)))]


def _edited(ground: Ground, edit: Callable[[FileDataset], None], kind: type[Exception], words: str) -> Spoiled:
    path = ground.pick()
    edit_file(path, edit)
    return Spoiled(kind, words, [path])


def missing(ground: Ground) -> Spoiled:
    place = int(ground.rng.integers(1, len(ground.paths) - 1))
    ground.paths[place].unlink()
    return Spoiled(GeometryError, "missing between them", [ground.paths[place - 1], ground.paths[place + 1]], all_named=True)


def doubled(ground: Ground) -> Spoiled:
    path = ground.pick()
    copy = path.with_name("1-030.dcm")
    shutil.copy(path, copy)
    edit_file(copy, lambda dataset: setattr(dataset, "SOPInstanceUID", generate_uid()))
    return Spoiled(GeometryError, "at the same position", [path, copy], all_named=True)


def cut_in_header(ground: Ground) -> Spoiled:
    path = ground.pick()
    content = path.read_bytes()
    end = content.index(b"\xe0\x7f\x10\x00")
    path.write_bytes(content[: int(ground.rng.integers(0, end))])
    return Spoiled(InputError, "DICOM folder", [path])


def cut_in_pixels(ground: Ground) -> Spoiled:
    path = ground.pick()
    content = path.read_bytes()
    begin = content.index(b"\xe0\x7f\x10\x00")
    path.write_bytes(content[: int(ground.rng.integers(begin + 12, len(content)))])
    return Spoiled(InputError, "cut short", [path])


def cut_in_compressed(ground: Ground) -> Spoiled:
    path = ground.pick()
    syntax = [RLELossless, JPEGLSLossless][int(ground.rng.integers(2))]
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax)
    save(dataset, path)
    content = path.read_bytes()
    begin = content.index(b"\xe0\x7f\x10\x00")
    path.write_bytes(content[: int(ground.rng.integers(begin + 12, len(content) - 8))])
    return Spoiled(InputError, "cut short", [path])


def tilted(ground: Ground) -> Spoiled:
    slope = math.tan(math.radians(float(ground.rng.uniform(1, 30))))
    for k, path in enumerate(ground.paths):
        shifted = ground.series.position(k) + k * ground.series.spacing[2] * slope * ground.series.axes[:, 1]
        edit_file(path, lambda dataset, at=shifted: setattr(dataset, "ImagePositionPatient", [f"{value:.6f}" for value in at]))
    return Spoiled(GeometryError, "tilted gantry", ground.paths)


def shifted(ground: Ground) -> Spoiled:
    place = int(ground.rng.integers(1, len(ground.paths)))
    at = ground.series.position(place) + float(ground.rng.uniform(0.2, 5)) * ground.series.axes[:, 0]
    edit_file(ground.paths[place], lambda dataset: setattr(dataset, "ImagePositionPatient", [f"{value:.6f}" for value in at]))
    return Spoiled(GeometryError, "shifted slice", ground.paths)


def irregular(ground: Ground) -> Spoiled:
    place = int(ground.rng.integers(1, len(ground.paths) - 1))
    at = ground.series.position(place + float(ground.rng.uniform(0.05, 0.4)))
    edit_file(ground.paths[place], lambda dataset: setattr(dataset, "ImagePositionPatient", [f"{value:.6f}" for value in at]))
    return Spoiled(GeometryError, "irregular distances", ground.paths[place - 1 : place + 2])


def mixed(ground: Ground) -> Spoiled:
    others = int(ground.rng.integers(1, 4))
    for number in range(others):
        other = random_series(ground.rng, count=int(ground.rng.integers(1, 5)))
        write(ground.folder, other, [f"{number + 2}-{place:03d}.dcm" for place in range(1, len(other.planes) + 1)])
    return Spoiled(InputError, f"found {others + 1} series, expected one (1: CT, ", [])


def other_orientation(ground: Ground) -> Spoiled:
    values = [f"{value:.10f}" for value in turned_axes(ground.rng)[:, :2].T.ravel()]
    return _edited(ground, lambda dataset: setattr(dataset, "ImageOrientationPatient", values), GeometryError, "another orientation")


def other_spacing(ground: Ground) -> Spoiled:
    values = [str(round(float(value), 4)) for value in ground.rng.uniform(1, 3, 2)]
    return _edited(ground, lambda dataset: setattr(dataset, "PixelSpacing", values), GeometryError, "another pixel spacing")


def other_size(ground: Ground) -> Spoiled:
    rows = int(ground.rng.integers(7, 12))

    def edit(dataset: FileDataset) -> None:
        dataset.Rows, dataset.PixelData = rows, b"\0" * (2 * rows * dataset.Columns)

    return _edited(ground, edit, GeometryError, "pixels but")


def other_frame_of_reference(ground: Ground) -> Spoiled:
    return _edited(ground, lambda dataset: setattr(dataset, "FrameOfReferenceUID", generate_uid()), GeometryError, "frame of reference")


def no_place(ground: Ground) -> Spoiled:
    field = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"][int(ground.rng.integers(3))]
    if ground.rng.integers(2):
        return _edited(ground, lambda dataset: delattr(dataset, field), GeometryError, f"no {field}")
    return _edited(ground, lambda dataset: setattr(dataset, field, ["1", "0"][:1]), GeometryError, f"a {field} that is not")


def unreadable_codec(ground: Ground) -> Spoiled:
    syntaxes = ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.201", "1.2.826.0.1.77"]
    syntax = UID(syntaxes[int(ground.rng.integers(len(syntaxes)))])
    path = ground.pick()
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + bytes(20) + b"\xff\xd9"])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = syntax
    with path.open("wb") as stream:
        pydicom.dcmwrite(stream, dataset, implicit_vr=False, little_endian=True)
    return Spoiled(InputError, "cannot be read here", [path])


def wrong_length(ground: Ground) -> Spoiled:
    change = int(ground.rng.choice([-20, -8, -2, 4, 30, 600]))

    def edit(dataset: FileDataset) -> None:
        dataset.PixelData = (dataset.PixelData + b"\0" * 600)[: len(dataset.PixelData) + change]

    return _edited(ground, edit, InputError, "bytes of pixels, expected 60")


def multi_frame(ground: Ground) -> Spoiled:
    def edit(dataset: FileDataset) -> None:
        if ground.rng.integers(2):
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(ENHANCED_CT)
        dataset.NumberOfFrames = 2
        dataset.PixelData = dataset.PixelData * 2

    return _edited(ground, edit, InputError, "multi-frame")


def colour(ground: Ground) -> Spoiled:
    def edit(dataset: FileDataset) -> None:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.PixelData = dataset.PixelData * 3

    return _edited(ground, edit, InputError, "colour")


def zero_spacing(ground: Ground) -> Spoiled:
    values = [["0", "1"], ["1", "0"], ["-0.5", "1"]][int(ground.rng.integers(3))]
    return _edited(ground, lambda dataset: setattr(dataset, "PixelSpacing", values), GeometryError, "0 or less")


def bright_low_values(ground: Ground) -> Spoiled:
    return _edited(ground, lambda dataset: setattr(dataset, "PhotometricInterpretation", "MONOCHROME1"), InputError, "MONOCHROME1")


def skewed_cosines(ground: Ground) -> Spoiled:
    values = ["1", "0", "0", "0.1", "0.99498744", "0"]
    return _edited(ground, lambda dataset: setattr(dataset, "ImageOrientationPatient", values), GeometryError, "perpendicular unit vectors")


def wrong_numbers(ground: Ground) -> Spoiled:
    field, value = [("RescaleSlope", "0"), ("RescaleIntercept", "low"), ("BitsStored", 40), ("Rows", 0)][int(ground.rng.integers(4))]

    def edit(dataset: FileDataset) -> None:
        dataset.add_new(field, "LO" if field.startswith("Rescale") else "US", value)

    return _edited(ground, edit, InputError, "expected" if field != "RescaleIntercept" else "not 1 finite number")


FAULTS: dict[str, Callable[[Ground], Spoiled]] = {
    function.__name__: function
    for function in (
        *(missing, doubled, cut_in_header, cut_in_pixels, cut_in_compressed, tilted, shifted, irregular, mixed),
        *(other_orientation, other_spacing, other_size, other_frame_of_reference, no_place, unreadable_codec),
        *(wrong_length, multi_frame, colour, zero_spacing, bright_low_values, skewed_cosines, wrong_numbers),
    )
}
