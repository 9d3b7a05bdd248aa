"""NIfTI files that are cut, flipped in a bit, or larger than they look: none is read wrongly, none fills the memory.

Expected: the sound file's own bytes, and the limits that ``nifti_check`` states.
"""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from nifti_files import AFFINE, SHAPE, nifti_bytes, put, random_values, save_bytes
from numpy.typing import NDArray

from medquant.data.nifti import read_nifti, read_nifti_mask, write_nifti
from medquant.data.volume import Volume
from medquant.errors import InputError, MedquantError

Random = np.random.Generator


# ------------------------------------------------------------------------------------------------- truncation and bits


def _check_cuts(folder: Path, content: bytes, count: int) -> int:
    refused = 0
    for packed in (False, True):
        path = save_bytes(folder, content, packed)
        whole = path.read_bytes()
        read_nifti(path)
        # Half of the cuts anywhere, a quarter in the header, a quarter in the last bytes, where checksum and length are.
        cuts = np.concatenate(
            [np.linspace(0, len(whole) - 1, count // 2), np.linspace(0, 400, count // 4), len(whole) - 1 - np.arange(count // 4)]
        )
        for keep in cuts.astype(int):
            path.write_bytes(whole[:keep])
            start = time.perf_counter()
            with pytest.raises(InputError) as caught:
                read_nifti(path)
            assert time.perf_counter() - start < 1
            assert path.name in str(caught.value)
            assert "\n" not in str(caught.value)
            refused += 1
    return refused


def _large(random: Random) -> bytes:
    """8 MiB of int16, smooth enough to be packed to half."""
    steps = random.integers(-9, 9, (256, 256, 64)).astype(np.int16)
    return bytes(nifti_bytes(np.cumsum(steps, axis=0, dtype=np.int16)))


def test_truncation(tmp_path: Path) -> None:
    assert _check_cuts(tmp_path, nifti_bytes(random_values(np.random.default_rng(0))), 40) == 2 * 40


@pytest.mark.slow
def test_truncation_of_a_scan(tmp_path: Path) -> None:
    assert _check_cuts(tmp_path, _large(np.random.default_rng(0)), 200) == 2 * 200


def _check_flips(path: Path, content: bytes, positions: NDArray[np.int64]) -> tuple[int, int]:
    """Count files that are refused, and such that unpack to the very same bytes and read as before; there is no third kind.

    The second are: time, name and other fields of the gzip header that say nothing of the content, the unused bits of the
    stream's last byte, and references to another place with equal bytes.
    """
    path.write_bytes(content)
    original = read_nifti(path)
    unpacked = gzip.decompress(content)
    refused = same = 0
    for position in positions:
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            volume = read_nifti(path)
        except MedquantError:
            refused += 1
            continue
        assert gzip.decompress(damaged) == unpacked
        assert volume.array.dtype == original.array.dtype
        np.testing.assert_array_equal(volume.array, original.array)
        np.testing.assert_array_equal(volume.affine, original.affine)
        same += 1
    return refused, same


def _packed_with_name(content: bytes) -> bytes:
    """As the program gzip writes it: the header of the stream holds a time and the name (RFC 1952), 10 + 9 bytes in all."""
    plain = gzip.compress(content, 6, mtime=1_000_000_000)
    return plain[:3] + b"\x08" + plain[4:10] + b"scan.nii\0" + plain[10:]


def test_every_bit_of_a_small_file(tmp_path: Path) -> None:
    content = _packed_with_name(nifti_bytes(np.arange(8, dtype=np.int16).reshape(2, 2, 2)))
    header, body = np.arange(8 * 19), np.arange(8 * 19, 8 * len(content))
    # Without a meaning for the scan: 4 bytes of time, 1 of extra flags, 1 of the system, 8 letters, and of the flags the mark for
    # text and three reserved bits. All others of the header matter: 2 + 1 bytes of magic and method, 4 flags, the name's end.
    assert _check_flips(tmp_path / "a.nii.gz", content, header) == (8 * 4 + 4, 8 * (4 + 1 + 1 + 8) + 4)
    refused, same = _check_flips(tmp_path / "a.nii.gz", content, body)
    assert refused + same == len(body)
    assert refused >= 0.97 * len(body)


@pytest.mark.slow
def test_flipped_bits(tmp_path: Path) -> None:
    content = gzip.compress(_large(np.random.default_rng(1)), 6, mtime=0)
    positions = np.random.default_rng(2).integers(0, 8 * len(content), 500)
    refused, same = _check_flips(tmp_path / "a.nii.gz", content, positions)
    assert refused + same == 500
    assert refused >= 498


def test_flipped_bits_of_a_real_scan(shared_data: Path, tmp_path: Path) -> None:
    content = (shared_data / "spinal_gm" / "small" / "site9-sc01-image.nii.gz").read_bytes()
    positions = np.random.default_rng(3).integers(0, 8 * len(content), 500)
    refused, same = _check_flips(tmp_path / "a.nii.gz", content, positions)
    assert refused + same == 500
    # Its gzip header takes 10 bytes and a name: about 0.3 % of the file.
    assert refused >= 490


def test_what_follows_the_voxels(tmp_path: Path) -> None:
    content = nifti_bytes(random_values(np.random.default_rng(0)))
    for tail in (bytes(512), b"\0\0\1", bytes(511) + b"\1", bytes(2_000_000)):
        for packed in (False, True):
            with pytest.raises(InputError, match="more data than its shape"):
                read_nifti(save_bytes(tmp_path, content + tail, packed))
    for garbage in (b"garbage", gzip.compress(b"more")):
        path = save_bytes(tmp_path, content, True)
        path.write_bytes(path.read_bytes() + garbage)
        with pytest.raises(InputError):
            read_nifti(path)


# ---------------------------------------------------------------------------------------------------------------- sizes

_MEASURE = """
import sys
from pathlib import Path
import nibabel
from medquant.data.nifti import read_nifti
from medquant.errors import InputError
def peak_mib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
idle = peak_mib()
limit = int(sys.argv[2]) or None
try:
    print(read_nifti(Path(sys.argv[1]), max_decoded_bytes=limit).shape)
except InputError as error:
    print(error)
print(peak_mib() - idle)
"""


def _measure(path: Path, limit: int = 0) -> tuple[str, float]:
    """What reading prints, and by how many MiB the process grew at most."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(path), str(limit)], capture_output=True, text=True, check=True, timeout=120)
    said, grown = done.stdout.strip().splitlines()
    return said, float(grown)


def _bomb(path: Path) -> None:
    """768 MiB of zeros in about 764 KiB: one compressed block of 16 MiB, 48 times."""
    head = nifti_bytes(np.zeros((1, 1, 1), np.int16))[:352]
    put(head, 42, "3h", 1024, 1024, 384)
    block = bytes(16 * 1024**2)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(bytes(head)) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = zlib.crc32(head)
    for _ in range(48):
        checksum = zlib.crc32(block, checksum)
    end = packer.flush() + struct.pack("<2L", checksum, 352 + 768 * 1024**2)
    path.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + start + zeros * 48 + end)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_small_file_that_grows(tmp_path: Path) -> None:
    _bomb(tmp_path / "bomb.nii.gz")
    assert (tmp_path / "bomb.nii.gz").stat().st_size == pytest.approx(764 * 1024, rel=0.03)
    said, grown_mib = _measure(tmp_path / "bomb.nii.gz")
    assert "needs 768 MiB, expected at most 512 MiB; it grows 10" in said
    assert grown_mib < 20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_small_file_that_may_grow(tmp_path: Path) -> None:
    _bomb(tmp_path / "trusted.nii.gz")
    said, grown_mib = _measure(tmp_path / "trusted.nii.gz", 1024**3)
    assert said == "(1024, 1024, 384)"
    assert 760 < grown_mib < 800


def test_header_that_promises_more_than_deflate_can(tmp_path: Path) -> None:
    content = nifti_bytes(np.zeros((1, 1, 1), np.int16))
    put(content, 42, "3h", 512, 512, 100)
    with pytest.raises(InputError, match=r"compressed bytes cannot hold the 52429152 of shape \(512, 512, 100\)"):
        read_nifti(save_bytes(tmp_path, content, True))
    with pytest.raises(InputError, match="found 354 of 52429152 bytes"):
        read_nifti(save_bytes(tmp_path, content, False))


def test_limit_of_the_caller(tmp_path: Path) -> None:
    content = nifti_bytes(random_values(np.random.default_rng(0)))
    size = 352 + 4 * 8 * 7 * 6
    for packed in (False, True):
        path = save_bytes(tmp_path, content, packed)
        assert read_nifti(path, max_decoded_bytes=size).shape == SHAPE
        with pytest.raises(InputError, match="needs 0 MiB, expected at most 0 MiB"):
            read_nifti(path, max_decoded_bytes=size - 1)


def test_an_empty_mask_of_full_size_is_honest(tmp_path: Path) -> None:
    write_nifti(tmp_path / "m.nii.gz", Volume(np.zeros((512, 512, 400), np.uint8), AFFINE))
    # 100 MiB in about 100 KiB: grown a thousandfold, and yet read.
    assert (tmp_path / "m.nii.gz").stat().st_size < 150_000
    mask = read_nifti_mask(tmp_path / "m.nii.gz")
    assert mask.shape == (512, 512, 400)
    assert not mask.array.any()
