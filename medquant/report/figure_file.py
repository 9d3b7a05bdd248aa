"""Writing a figure to disk so that a reader finds the whole old picture or the whole new one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from medquant.data.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_png(figure: Figure, out_path: Path, *, dpi: int = 110) -> None:
    """Draw a figure and write it as PNG, atomically; the same figure gives the same bytes.

    Args:
        figure: any figure; it needs no window and no pyplot.
        out_path: target, replaced if it exists; its folder must exist.
        dpi: pixels an inch.

    Raises:
        UsageError: the folder is missing or cannot be written to.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # drawn in memory first: whether drawing fails is settled before a file is touched
    picture = io.BytesIO()
    # without "Software" the file would carry the version of the drawing library
    FigureCanvasAgg(figure).print_figure(picture, format="png", dpi=dpi, metadata={"Software": None})

    def write(stream: BinaryIO) -> None:
        stream.write(picture.getbuffer())

    write_atomically(out_path, write)
