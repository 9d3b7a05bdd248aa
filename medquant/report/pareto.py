"""The networks that nothing beats: none is both as small and as good, and better in one."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points (size, score) are on the front: small sizes and large scores are wanted.

    Returns:
        Their indices, smallest first; equal points are all on it.
    """
    best = float("-inf")
    front: list[int] = []
    last: tuple[float, float] | None = None
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index)):
        size, score = points[index]
        if score > best or (size, score) == last:
            front.append(index)
            best, last = score, (size, score)
    return front
