"""Every PNG and TIFF of the odd inputs: read like another library reads it, or refused for a stated reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medquant.data.png import read_png
from medquant.data.tiff import read_tiff_stack
from medquant.errors import InputError

# File → number type as read, or the reason it is refused for.
TABLE: dict[str, str] = {
    "sub-png_sample-16gray_SEM.png": "uint16",
    "sub-png_sample-8gray_SEM.png": "uint8",
    "sub-png_sample-8grayalpha_SEM.png": "mode RGBA, expected gray",
    "sub-png_sample-8rgb_SEM.png": "mode RGB, expected gray",
    "sub-png_sample-8rgba_SEM.png": "mode RGBA, expected gray",
    "sub-tif_sample-16gray_SEM.tif": "uint16",
    "sub-tif_sample-8gray_SEM.tif": "uint8",
    "sub-tif_sample-8rgb_SEM.tif": "samples a pixel",
}


def test_every_file_is_in_the_table(shared_data: Path) -> None:
    assert sorted(TABLE) == sorted(file.name for file in (shared_data / "odd_inputs" / "image").iterdir())


@pytest.mark.parametrize("name", TABLE)
def test_file(shared_data: Path, name: str) -> None:
    path, expected = shared_data / "odd_inputs" / "image" / name, TABLE[name]
    read = read_png if path.suffix == ".png" else read_tiff_stack
    if not expected.startswith("uint"):
        with pytest.raises(InputError, match=expected):
            read(path)
        return
    volume = read(path)
    with Image.open(path) as image:
        pixels = np.asarray(image)
    assert volume.dtype.name == expected
    np.testing.assert_array_equal(volume.array[:, :, 0].T, pixels)
    assert not volume.has_geometry
