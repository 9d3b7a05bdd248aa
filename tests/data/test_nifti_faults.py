"""NIfTI files with bad voxels or a bad header: all refused, or repaired by a rule that is written down.

What has to happen follows from the rules in ``nifti_header``, ``nifti_geometry`` and ``voxel_rules``; each class is drawn 20 times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from nifti_files import AFFINE, SHAPE, nifti_bytes, put, random_values, save_bytes
from numpy.typing import NDArray

from medquant.data.nifti import read_nifti, read_nifti_mask
from medquant.data.nifti_check import read_nifti_fully
from medquant.errors import GeometryError, InputError, MedquantError, UsageError

VARIATIONS = 20
NAN, INF = float("nan"), float("inf")
Random = np.random.Generator


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("qform_code", "sform_code"), [(0, 1), (1, 0), (1, 1)])
def test_the_undamaged_file_reads(tmp_path: Path, order: str, qform_code: int, sform_code: int) -> None:
    values = random_values(np.random.default_rng(0))
    content = nifti_bytes(values, qform_code=qform_code, sform_code=sform_code, order=order)
    for packed in (False, True):
        volume = read_nifti(save_bytes(tmp_path, content, packed))
        np.testing.assert_array_equal(volume.array, values)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-12)


# ------------------------------------------------------------------------------------------------------- bad voxels


def _infect(random: Random, number: float) -> tuple[NDArray[np.float32], int]:
    values = random_values(random)
    places = random.choice(values.size, size=int(random.integers(1, values.size // 2)), replace=False)
    values.reshape(-1)[places] = number
    return values, len(places)


@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_bad_voxels_are_refused_or_zeroed(tmp_path: Path, number: float) -> None:
    random = np.random.default_rng(4)
    for index in range(VARIATIONS):
        values, count = _infect(random, number)
        path = save_bytes(tmp_path, nifti_bytes(values), bool(index % 2))
        word = f"{count} {'NaN' if np.isnan(number) else 'infinite'} of {values.size} voxels"
        for read in (read_nifti, read_nifti_mask):
            with pytest.raises(InputError, match=word):
                read(path)
        told: list[str] = []
        repaired = read_nifti(path, bad_voxels="zero", notify=told.append).array
        np.testing.assert_array_equal(repaired, np.where(np.isfinite(values), values, 0))
        assert told == [f"{path}: {word} set to 0, as asked"]


@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_nothing_but_bad_voxels_is_always_refused(tmp_path: Path, number: float) -> None:
    for packed in (False, True):
        path = save_bytes(tmp_path, nifti_bytes(np.full(SHAPE, number, np.float32)), packed)
        for rule in ("refuse", "zero"):
            with pytest.raises(InputError, match="nothing is left to repair"):
                read_nifti(path, bad_voxels=rule)  # type: ignore[arg-type]


def test_scaling_beyond_all_numbers_is_a_bad_voxel(tmp_path: Path) -> None:
    values = np.full((2, 2, 2), 3e38, np.float32)
    content = nifti_bytes(values)
    put(content, 112, "2f", 3e38, 0)
    # 9e76 fits float64.
    assert read_nifti(save_bytes(tmp_path, content, False)).array.dtype == np.float64
    doubles = bytearray(content[:352]) + np.full(8, 1e300).tobytes()
    put(doubles, 70, "2h", 64, 64)
    with pytest.raises(InputError, match="8 infinite of 8 voxels"):
        read_nifti(save_bytes(tmp_path, doubles, False))


# ---------------------------------------------------------------------------------------------------------- bad headers


def _axis(random: Random) -> int:
    return int(random.integers(0, 3))


def _pick(random: Random, *choices: float) -> float:
    return choices[int(random.integers(0, len(choices)))]


def _wrong_size(random: Random, content: bytearray) -> None:
    put(content, 0, "i", int(_pick(random, 0, -348, 349, 347, 540, 256, int(random.integers(541, 2**31)))))


def _wrong_magic(random: Random, content: bytearray) -> None:
    content[344 + int(random.integers(0, 4))] ^= int(random.integers(1, 256))


def _pair(_: Random, content: bytearray) -> None:
    content[344:348] = b"ni1\0"


def _wrong_axes(random: Random, content: bytearray) -> None:
    put(content, 40, "h", int(_pick(random, 0, -3, 8, int(random.integers(9, 32768)), -int(random.integers(1, 32769)))))


def _no_length(random: Random, content: bytearray) -> None:
    put(content, 42 + 2 * _axis(random), "h", int(_pick(random, 0, -8, -int(random.integers(1, 32769)))))


def _other_length(random: Random, content: bytearray) -> None:
    """One slice more, one slice less, or far more: the length of the file tells."""
    axis = _axis(random)
    put(content, 42 + 2 * axis, "h", int(_pick(random, SHAPE[axis] + 1, 1, SHAPE[axis] // 2, 32767)))


def _huge(_: Random, content: bytearray) -> None:
    put(content, 40, "8h", 7, *[32767] * 7)


def _wrong_type(random: Random, content: bytearray) -> None:
    # 0 unknown, 1 bit, complex, RGB, 128-bit, RGBA, and codes that are none.
    put(content, 70, "h", int(_pick(random, 0, 1, 32, 128, 1536, 1792, 2048, 2304, 3, 17, -16, 255, int(random.integers(2305, 32768)))))


def _wrong_bits(random: Random, content: bytearray) -> None:
    put(content, 72, "h", int(_pick(random, 0, 8, 16, 64, 31, -32)))


def _offset_inside(random: Random, content: bytearray) -> None:
    put(content, 108, "f", _pick(random, 0, 1, 348, 351, -352, 352.5, NAN, INF, -INF))


def _offset_beyond(random: Random, content: bytearray) -> None:
    put(content, 108, "f", _pick(random, 353, 368, len(content), len(content) + 16, 1e9, 1e30, float(random.integers(1000, 10**7))))


def _wrong_scaling(random: Random, content: bytearray) -> None:
    slope, intercept = ((INF, 0), (-INF, 1), (2, NAN), (1, INF), (-0.5, -INF))[int(random.integers(0, 5))]
    put(content, 112, "2f", slope, intercept)


def _vectors(random: Random, content: bytearray) -> None:
    put(content, 68, "h", int(random.integers(1004, 1011)))


def _broken_sform(random: Random, content: bytearray) -> None:
    put(content, 280 + 4 * int(random.integers(0, 12)), "f", _pick(random, NAN, INF, -INF))


def _singular_sform(random: Random, content: bytearray) -> None:
    matrix = random.normal(size=(3, 4)) * 3
    first, second = random.permutation(3)[:2]
    matrix[:, first] = matrix[:, second] * _pick(random, 0, 1, -2)
    put(content, 280, "12f", *matrix.ravel())


def _qform_only(content: bytearray) -> None:
    put(content, 252, "2h", 1, 0)


def _bad_voxel_size(random: Random, content: bytearray) -> None:
    put(content, 252, "2h", int(random.integers(0, 3)), 0)
    put(content, 80 + 4 * _axis(random), "f", _pick(random, 0, -0.5, -3, NAN, INF, -INF))


def _bad_quaternion(random: Random, content: bytearray) -> None:
    _qform_only(content)
    put(content, 256 + 4 * _axis(random), "f", _pick(random, NAN, INF, 1.5, -7, 1e30))


def _bad_qform_origin(random: Random, content: bytearray) -> None:
    _qform_only(content)
    put(content, 268 + 4 * _axis(random), "f", _pick(random, NAN, INF, -INF))


def _bad_qfac(random: Random, content: bytearray) -> None:
    _qform_only(content)
    put(content, 76, "f", _pick(random, NAN, INF, 0.5, -7))


def _disagreement(random: Random, content: bytearray) -> None:
    """Both transforms claim to count, and are 0.6 voxels and more apart: moved, flipped or stretched."""
    put(content, 252, "2h", int(random.integers(1, 5)), int(random.integers(1, 5)))
    axis, kind = _axis(random), int(random.integers(0, 3))
    if kind == 0:
        sizes, sign = (0.5, 0.75, 3), _pick(random, -1, 1)
        put(content, 268 + 4 * axis, "f", (10, -20, 5)[axis] + sign * sizes[axis] * random.uniform(0.6, 90))
    elif kind == 1:
        put(content, 76, "f", 1)
    else:
        put(content, 80 + 4 * axis, "f", (0.5, 0.75, 3)[axis] * random.uniform(1.2, 3))


def _unusable_qform_beside_sform(random: Random, content: bytearray) -> None:
    _bad_quaternion(random, content)
    put(content, 252, "2h", 1, 1)


def _unknown_code(random: Random, content: bytearray) -> None:
    put(content, 252 + 2 * int(random.integers(0, 2)), "h", int(_pick(random, -1, 6, 7, 300, -32768)))


def _unknown_unit(random: Random, content: bytearray) -> None:
    content[123] = int(random.integers(4, 8)) | 8


@dataclass(frozen=True)
class Fault:
    damage: Callable[[Random, bytearray], None]
    error: type[MedquantError]
    because: str


FAULTS = {
    "sizeof_hdr": Fault(_wrong_size, InputError, "no NIfTI header|expected a header of 540|no NIfTI mark|axes"),
    "magic": Fault(_wrong_magic, InputError, "no NIfTI mark|second file"),
    "pair": Fault(_pair, InputError, "second file"),
    "number of axes": Fault(_wrong_axes, InputError, "the header announces -?[0-9]+ axes"),
    "length below 1": Fault(_no_length, InputError, "found shape .* expected lengths of 1 and more"),
    "another length": Fault(_other_length, InputError, "cut short|more data than its shape|cannot hold|needs [0-9]+ MiB"),
    "huge": Fault(_huge, InputError, "cut short|needs [0-9]+ MiB"),
    "datatype": Fault(_wrong_type, InputError, "expected plain numbers"),
    "bitpix": Fault(_wrong_bits, InputError, "contradicts itself"),
    "vox_offset inside": Fault(_offset_inside, InputError, "voxels start at byte"),
    "vox_offset beyond": Fault(_offset_beyond, InputError, "cut short|ends before its voxels|cannot hold|needs [0-9]+ MiB"),
    "scaling": Fault(_wrong_scaling, InputError, "found scaling .* expected finite"),
    "intent": Fault(_vectors, InputError, "vectors or matrices"),
    "sform not finite": Fault(_broken_sform, GeometryError, "sform is not finite and invertible"),
    "sform singular": Fault(_singular_sform, GeometryError, "sform is not finite and invertible"),
    "pixdim": Fault(_bad_voxel_size, GeometryError, "voxel sizes .* expected positive"),
    "quaternion": Fault(_bad_quaternion, GeometryError, "qform cannot be computed|qform is not finite"),
    "qoffset": Fault(_bad_qform_origin, GeometryError, "qform cannot be computed"),
    "qfac": Fault(_bad_qfac, GeometryError, "qform cannot be computed"),
    "disagreement": Fault(_disagreement, GeometryError, "voxels apart, expected at most 0.5"),
    "qform unusable": Fault(_unusable_qform_beside_sform, GeometryError, "qform cannot be computed .* take the sform"),
    "form code": Fault(_unknown_code, GeometryError, "form code -?[0-9]+, expected 0 to 5"),
    "unit": Fault(_unknown_unit, GeometryError, "unit of length [4-7]"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_headers_are_refused(tmp_path: Path, name: str) -> None:
    fault = FAULTS[name]
    random = np.random.default_rng(list(FAULTS).index(name))
    for _ in range(VARIATIONS):
        content = nifti_bytes(random_values(random))
        secret = b"DOE^JANE 19501231"
        content[148 : 148 + len(secret)] = secret
        fault.damage(random, content)
        for packed in (False, True):
            path = save_bytes(tmp_path, content, packed)
            for read in (read_nifti, read_nifti_mask):
                with pytest.raises(fault.error, match=fault.because) as caught:
                    read(path)
                assert path.name in str(caught.value)
                assert "DOE" not in str(caught.value)
                assert len(str(caught.value).splitlines()) == 1


def test_headers_that_are_repaired(tmp_path: Path) -> None:
    """The stated repairs: the values and the affine are those of the sound file."""
    random = np.random.default_rng(99)
    for index in range(VARIATIONS):
        values = random_values(random)
        for name in ("unscaled", "pixdim beside sform", "qfac 0", "small disagreement", "padding", "extension", "slice"):
            sound = values[:, :, 0] if name == "slice" else values
            content = nifti_bytes(sound)
            if name == "unscaled":
                put(content, 112, "2f", *((0, 7), (NAN, NAN), (NAN, 3), (0, NAN))[int(random.integers(0, 4))])
            elif name == "pixdim beside sform":
                put(content, 80 + 4 * _axis(random), "f", _pick(random, 0, -1, NAN, INF, 99))
            elif name == "qfac 0":
                # 0 counts as 1, so the affine is that of the quaternion alone: its third axis keeps its sign.
                _qform_only(content)
                put(content, 76, "f", 0)
                put(content, 256, "3f", 0, 0, 1)
            elif name == "small disagreement":
                put(content, 252, "2h", 1, 2)
                put(content, 268, "f", 10 + 0.5 * random.uniform(-0.49, 0.49))
            elif name == "padding":
                content += bytes(int(random.integers(1, 512)))
            elif name == "extension":
                put(content, 108, "f", 352 + 64)
                content[352:352] = random.bytes(64)
            elif name == "slice":
                _qform_only(content)
                put(content, 88, "f", 0)
            expected = AFFINE.copy()
            if name == "qfac 0":
                # A half turn about k: -1, -1, 1 times the voxel sizes.
                expected[:3, :3] = np.diag([-0.5, -0.75, 3])
            elif name == "slice":
                expected[2, 2] = 1
            volume = read_nifti(save_bytes(tmp_path, content, bool(index % 2)))
            np.testing.assert_array_equal(volume.array, sound.reshape((*sound.shape, 1)[:3]), err_msg=name)
            np.testing.assert_allclose(volume.affine, expected, atol=1e-6, err_msg=name)
            assert volume.has_geometry


def test_the_user_may_choose_a_transform(tmp_path: Path) -> None:
    content = nifti_bytes(random_values(np.random.default_rng(0)), qform_code=1, sform_code=1)
    put(content, 268, "3f", 100, 200, 300)
    path = save_bytes(tmp_path, content, False)
    assert read_nifti(path, transform="sform").affine[:3, 3].tolist() == [10, -20, 5]
    assert read_nifti(path, transform="qform").affine[:3, 3].tolist() == [100, 200, 300]
    with pytest.raises(UsageError, match="unknown transform 'aform'"):
        read_nifti(path, transform="aform")  # type: ignore[arg-type]
    put(content, 252, "2h", 1, 0)
    with pytest.raises(GeometryError, match="sform was asked for, but its code is 0"):
        read_nifti(save_bytes(tmp_path, content, False), transform="sform")


def test_inspection_learns_of_a_bad_place(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    for name in ("sform not finite", "pixdim", "quaternion", "disagreement", "unit"):
        content = nifti_bytes(random_values(random))
        FAULTS[name].damage(random, content)
        contents = read_nifti_fully(save_bytes(tmp_path, content, False))
        assert contents.geometry_fault is not None
        assert contents.values.shape == SHAPE
        assert contents.affine.shape == (4, 4)
