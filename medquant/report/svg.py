"""Figures as SVG that stands inside an HTML page: nothing is loaded, colours follow the page, the same figure gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import re
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What the plots draw with, and what the page calls it; a page has its own values for light and dark.
_COLOURS = {
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    "#666666": "var(--muted)",
    "#dddddd": "var(--rule)",
    "#cccccc": "var(--rule)",
    "#0072b2": "var(--c0)",
    "#d55e00": "var(--c1)",
    "#009e73": "var(--c2)",
    "#cc79a7": "var(--c3)",
    "#56b4e9": "var(--c4)",
    "#e69f00": "var(--c5)",
}
_COLOUR = re.compile("|".join(_COLOURS), re.IGNORECASE)
_DROPPED = re.compile(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", re.DOTALL)
_HEAD = re.compile(r"<svg[^>]*viewBox=\"(?P<box>[-0-9. ]+)\"[^>]*>")
_FONT = re.compile(r"font: (?P<size>[0-9.]+px)[^;\"]*")
_ID = re.compile(r" id=\"(?P<id>[^\"]*)\"")
_REFERENCE = re.compile(r"(?P<before>xlink:href=\"#|url\(#)(?P<id>[^\")]*)")


def inline_svg(figure: Figure, name: str, label: str) -> Markup:
    """A figure as one ``<svg>`` element.

    Args:
        figure: any; what is outside its axes is transparent.
        name: unique in the page, of letters, digits and dashes: what the figure refers to inside itself begins with it.
        label: what it shows, for who does not see it.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    target = io.StringIO()
    figure.patch.set_visible(False)
    for ax in figure.axes:
        ax.patch.set_visible(False)
    # Text stays text: it can be read aloud, searched and copied, and takes the colour and the font of the page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None})
    return Markup(_for_page(target.getvalue(), name, label))


def _for_page(text: str, name: str, label: str) -> str:
    head = _HEAD.search(text)
    if head is None:
        raise ValueError("the drawing library wrote no SVG element with a viewBox")
    body = _DROPPED.sub("", text[head.end() :])
    used = {match["id"] for match in _REFERENCE.finditer(body)}
    short = {old: f"{name}-{number}" for number, old in enumerate(sorted(used))}
    body = _ID.sub(lambda match: f' id="{short[match["id"]]}"' if match["id"] in short else "", body)
    body = _REFERENCE.sub(lambda match: f"{match['before'].removeprefix('xlink:')}{short[match['id']]}", body)
    body = _COLOUR.sub(lambda match: _COLOURS[match[0].lower()], _FONT.sub(r"font-size: \g<size>", body))
    body = re.sub(r"\n\s*", "\n", body)
    box = head["box"]
    width = float(box.split()[2])
    opening = Markup('<svg class="plot" viewBox="{}" style="max-width: {:.0f}px" role="img" aria-label="{}">').format(
        box, 1.45 * width, label
    )
    return f"{opening}{body[: body.rindex('</svg>')].strip()}</svg>"


def bar_paths(before: list[int] | None, after: list[int] | None) -> tuple[str, str]:
    """A weight histogram as two SVG paths in a box of 100 × 40, each scaled to its own highest bin: outline before, filled after.

    Args:
        before: counts by bin, or None.
        after: counts by bin, or None.

    Returns:
        The ``d`` of each; "" where there is nothing.
    """
    return _steps(before, closed=False), _steps(after, closed=True)


def _steps(counts: list[int] | None, closed: bool) -> str:
    if not counts or not max(counts):
        return ""
    width, most = 100.0 / len(counts), max(counts)
    parts = ["M0 40"]
    # Empty bins are passed over in one line: of few bits most are empty.
    level = 0
    for number, count in enumerate(counts):
        if count != level:
            parts.append(f"H{number * width:.4g}V{40.0 - 38.0 * count / most:.4g}")
            level = count
    parts.append("H100V40" + ("Z" if closed else ""))
    return "".join(parts)


def short_digest(text: str) -> str:
    """A name for use in a page that depends on a text and holds nothing of it."""
    return "x" + hashlib.sha256(text.encode()).hexdigest()[:10]
