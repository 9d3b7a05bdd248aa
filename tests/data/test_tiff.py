"""TIFF reading and writing. Expected values: arrays built here, written by tifffile or Pillow, and read back by the other."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from medquant.data.tiff import ACCEPTED_TYPES, read_tiff_stack, write_tiff_stack
from medquant.errors import InputError, UsageError


def _stack(dtype: str = "uint8", shape: tuple[int, int, int] = (3, 5, 7)) -> np.ndarray:
    """Pages (K, rows, columns) in which every pixel differs from its neighbours."""
    return (np.arange(np.prod(shape)).reshape(shape) % 100).astype(dtype)


def test_axes_are_column_row_page(tmp_path: Path) -> None:
    pages = _stack()
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    volume = read_tiff_stack(tmp_path / "a.tif")
    assert volume.shape == (7, 5, 3)
    assert not volume.has_geometry
    # By hand: page 2, row 1, column 4 is element (2·5 + 1)·7 + 4 = 81.
    assert volume.array[4, 1, 2] == 81


@pytest.mark.parametrize("dtype", ACCEPTED_TYPES)
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_every_accepted_type_order_and_compression(tmp_path: Path, dtype: str, byteorder: str, compression: str | None) -> None:
    pages = _stack(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack", compression=compression, byteorder=byteorder)
    volume = read_tiff_stack(tmp_path / "a.tif")
    assert volume.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.array, pages.transpose(2, 1, 0))


def test_imagej_stack_and_pillow_packbits(tmp_path: Path) -> None:
    pages = _stack()
    tifffile.imwrite(tmp_path / "ij.tif", pages, imagej=True)
    np.testing.assert_array_equal(read_tiff_stack(tmp_path / "ij.tif").array, pages.transpose(2, 1, 0))
    first, *rest = (Image.fromarray(page) for page in pages)
    first.save(tmp_path / "pil.tif", save_all=True, append_images=rest, compression="packbits")
    np.testing.assert_array_equal(read_tiff_stack(tmp_path / "pil.tif").array, pages.transpose(2, 1, 0))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_written_stack_is_read_by_pillow_and_is_stable(tmp_path: Path, dtype: str) -> None:
    array = _stack(dtype).transpose(2, 1, 0)
    write_tiff_stack(tmp_path / "a.tif", array)
    write_tiff_stack(tmp_path / "b.tif", array)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    with Image.open(tmp_path / "a.tif") as image:
        assert getattr(image, "n_frames") == 3  # noqa: B009
        for page in range(3):
            image.seek(page)
            np.testing.assert_array_equal(np.asarray(image), array[:, :, page].T)
    np.testing.assert_array_equal(read_tiff_stack(tmp_path / "a.tif").array, array)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.tif", "b.tif"]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.tif"
    write_tiff_stack(target, _stack())
    before = target.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        write_tiff_stack(target, _stack() + 1)
    assert target.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.tif"]


def test_write_refuses_odd_arrays_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="three axes"):
        write_tiff_stack(tmp_path / "a.tif", np.zeros((4, 4), np.uint8))
    with pytest.raises(UsageError, match="int64"):
        write_tiff_stack(tmp_path / "a.tif", np.zeros((4, 4, 1), np.int64))
    with pytest.raises(UsageError, match="does not exist"):
        write_tiff_stack(tmp_path / "none" / "a.tif", np.zeros((4, 4, 1), np.uint8))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_truncation_at_any_point_is_refused(tmp_path: Path, compression: str | None) -> None:
    pages = np.random.default_rng(0).integers(0, 255, (4, 32, 32), dtype=np.uint8)
    whole = tmp_path / "whole.tif"
    tifffile.imwrite(whole, pages, photometric="minisblack", compression=compression)
    content = whole.read_bytes()
    used = _last_used_byte(whole)
    for keep in np.linspace(0, used - 1, 60).astype(int):
        cut = tmp_path / "cut.tif"
        cut.write_bytes(content[:keep])
        with pytest.raises(InputError, match=r"cut\.tif"):
            read_tiff_stack(cut)


def _last_used_byte(path: Path) -> int:
    """End of the last pixel or tag; tifffile may pad a file beyond that."""
    with tifffile.TiffFile(path) as tiff:
        ends = [offset + count for page in tiff.pages for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    return max(ends)


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found nothing"):
        read_tiff_stack(tmp_path / "none.tif")
    with pytest.raises(InputError, match="found a folder"):
        read_tiff_stack(tmp_path)
    (tmp_path / "empty.tif").write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        read_tiff_stack(tmp_path / "empty.tif")
    (tmp_path / "text.tif").write_text("not a TIFF at all")
    with pytest.raises(InputError, match="no TIFF"):
        read_tiff_stack(tmp_path / "text.tif")


def test_colour_mixed_pages_and_odd_types(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4, 4, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match="3 samples"):
        read_tiff_stack(path)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(np.zeros((4, 4), np.uint8), photometric="minisblack")
        tiff.write(np.zeros((5, 4), np.uint8), photometric="minisblack")
    with pytest.raises(InputError, match="page 1 is 4×5 uint8 but page 0 is 4×4 uint8"):
        read_tiff_stack(path)
    tifffile.imwrite(path, np.zeros((4, 4), np.uint32), photometric="minisblack")
    with pytest.raises(InputError, match="32-bit"):
        read_tiff_stack(path)
    tifffile.imwrite(path, np.zeros((4, 4), np.uint8), photometric="miniswhite")
    with pytest.raises(InputError, match="MINISWHITE"):
        read_tiff_stack(path)
    tifffile.imwrite(path, np.zeros((4, 4), np.uint8), photometric="minisblack", extratags=[(274, 3, 1, 6, True)])
    with pytest.raises(InputError, match="orientation tag 6"):
        read_tiff_stack(path)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path, compression="tiff_lzw")
    with pytest.raises(InputError, match="compression LZW"):
        read_tiff_stack(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    pages = _stack("float32")
    pages[1, 2, 3] = value
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    with pytest.raises(InputError, match="1 NaN or Inf"):
        read_tiff_stack(tmp_path / "a.tif")


def test_size_is_refused_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, _stack(), photometric="minisblack")
    with pytest.raises(InputError, match="need 0 MiB, expected at most 0 MiB"):
        read_tiff_stack(path, max_decoded_bytes=104)
    assert read_tiff_stack(path, max_decoded_bytes=105).array.size == 105
    huge = tmp_path / "huge.tif"
    huge.write_bytes(_minimal_deflate_tiff(width=60000, height=60000, packed=zlib.compress(b"\0" * 100)))
    with pytest.raises(InputError, match="3433 MiB"):
        read_tiff_stack(huge)


def test_deflate_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    path.write_bytes(_minimal_deflate_tiff(width=4, height=4, packed=zlib.compress(b"\0" * 50_000_000)))
    with pytest.raises(InputError, match="more than its 16 bytes"):
        read_tiff_stack(path)
    path.write_bytes(_minimal_deflate_tiff(width=4, height=4, packed=zlib.compress(bytes(range(16)))))
    np.testing.assert_array_equal(read_tiff_stack(path).array[:, :, 0].T.ravel(), np.arange(16))


def _minimal_deflate_tiff(width: int, height: int, packed: bytes) -> bytes:
    """One page by the TIFF 6 specification: header, nine tags, one strip."""
    entries = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 8),
        (262, 1),
        (273, 8 + 2 + 9 * 12 + 4),
        (277, 1),
        (278, height),
        (279, len(packed)),
    ]
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 9) + tags + struct.pack("<I", 0) + packed


def test_looped_page_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.tif"
    content = bytearray(_minimal_deflate_tiff(4, 4, zlib.compress(bytes(16))))
    next_page = 8 + 2 + 9 * 12
    content[next_page : next_page + 4] = struct.pack("<I", 8)
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="returns to itself"):
        read_tiff_stack(path)


def test_bigtiff(tmp_path: Path) -> None:
    pages = _stack("uint16")
    tifffile.imwrite(tmp_path / "big.tif", pages, photometric="minisblack", bigtiff=True)
    np.testing.assert_array_equal(read_tiff_stack(tmp_path / "big.tif").array, pages.transpose(2, 1, 0))


def test_real_gray_and_colour_samples(shared_data: Path) -> None:
    folder = shared_data / "odd_inputs" / "image"
    with pytest.raises(InputError, match="3 samples"):
        read_tiff_stack(folder / "sub-tif_sample-8rgb_SEM.tif")
    # These two carry a small colour preview as their second page, marked as such.
    for name in ("sub-tif_sample-16gray_SEM.tif", "sub-tif_sample-8gray_SEM.tif"):
        assert read_tiff_stack(folder / name).shape == (256, 256, 1)


def test_previews_alone_are_no_stack(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "preview.tif", np.zeros((4, 4), np.uint8), photometric="minisblack", subfiletype=1)
    with pytest.raises(InputError, match="previews alone"):
        read_tiff_stack(tmp_path / "preview.tif")
