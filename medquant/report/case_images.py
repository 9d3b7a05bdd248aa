"""A slice and the outlines on it as small PNG images inside the page: the grey image once, each outline as a layer over it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medquant.report.overlay import FALSE_RGB, MISSED_RGB, RIGHT_RGB
from medquant.report.record import ShownCase

MOST_PIXELS = 384
"""Longest side of a picture; a larger slice is thinned out."""

_WINDOW_PERCENT = (0.5, 99.5)
# A picture of a picture is better as JPEG: a tenth of the size.
_OVERVIEW_WIDTH = 820
_MOST_OVERVIEW_PIXELS = 2**26


@dataclass(frozen=True)
class CaseImages:
    """The data URIs of one slice.

    Args:
        image: the grey image.
        truth: outline of the truth.
        outlines: one a prediction.
        differences: one a prediction: right, missed, false.
    """

    width: int
    height: int
    image: str
    truth: str
    outlines: tuple[str, ...]
    differences: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Characters in the page."""
        return sum(len(uri) for uri in (self.image, self.truth, *self.outlines, *self.differences))


def case_images(case: ShownCase) -> CaseImages:
    """Draw a case; i runs to the right and j downwards."""
    step = max(1, -(-max(case.image.shape) // MOST_PIXELS))
    truth = case.truth.T
    masks = [prediction.mask.T for prediction in case.predictions]
    grey = _grey(case.image.T)
    if step > 1:
        grey = _averaged(grey, step)
    height, width = grey.shape
    return CaseImages(
        width,
        max(1, round(height * case.height_to_width)),
        _uri(Image.fromarray(grey.astype(np.uint8))),
        _layer([(_outline(truth[::step, ::step]), RIGHT_RGB)]),
        tuple(_layer([(_outline(mask[::step, ::step]), RIGHT_RGB)]) for mask in masks),
        tuple(_difference(truth[::step, ::step], mask[::step, ::step]) for mask in masks),
    )


def picture_uri(png: bytes) -> str | None:
    """A run's own overlay picture, scaled down, as a data URI; None where the file is no such picture."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            if picture.width * picture.height > _MOST_OVERVIEW_PIXELS:
                return None
            shown = picture.convert("RGB")
        shown.thumbnail((_OVERVIEW_WIDTH, 4 * _OVERVIEW_WIDTH))
        target = io.BytesIO()
        shown.save(target, format="JPEG", quality=72, optimize=True)
    except Exception:
        # Pillow meets damaged files with many kinds of error; a report can do without the picture.
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(target.getvalue()).decode()}"


def _grey(image: NDArray[np.floating]) -> NDArray[np.float64]:
    values = np.nan_to_num(image.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = np.percentile(values, _WINDOW_PERCENT)
    if high <= low:
        low, high = values.min(), values.max()
    if high <= low:
        return np.full(values.shape, 127.0)
    # Fewer grey levels than a screen shows, which no eye misses here, and a third of the file.
    return np.asarray(np.rint(np.clip((values - low) / (high - low), 0.0, 1.0) * 63.0) * 4.0)


def _averaged(grey: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    """Means over blocks of ``step`` pixels a side, the last ones filled up with their own edge."""
    padded = np.pad(grey, [(0, -length % step) for length in grey.shape], mode="edge")
    rows, columns = (length // step for length in padded.shape)
    blocks = padded.reshape(rows, step, columns, step).mean(axis=(1, 3))
    return np.asarray(np.rint(blocks / 4.0) * 4.0)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return mask & ~inner


def _difference(truth: NDArray[np.bool_], mask: NDArray[np.bool_]) -> str:
    return _layer([(truth & mask, RIGHT_RGB), (truth & ~mask, MISSED_RGB), (mask & ~truth, FALSE_RGB)], opacity=150)


def _layer(parts: list[tuple[NDArray[np.bool_], tuple[int, int, int]]], opacity: int = 255) -> str:
    indices = np.zeros(parts[0][0].shape, dtype=np.uint8)
    colours = [0, 0, 0]
    for number, (where, colour) in enumerate(parts, start=1):
        indices[where] = number
        colours += colour
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette(colours)
    return _uri(picture, transparency=bytes([0, *[opacity] * len(parts)]))


def _uri(picture: Image.Image, **options: bytes) -> str:
    target = io.BytesIO()
    picture.save(target, format="PNG", optimize=True, **options)
    return f"data:image/png;base64,{base64.b64encode(target.getvalue()).decode()}"
