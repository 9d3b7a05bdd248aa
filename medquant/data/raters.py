"""One mask from those of several raters: their vote, or the estimate of STAPLE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medquant.data.volume import LabelArray
from medquant.errors import InputError

TIE_RULE = "ties go to the lower class number"

_START = 0.99999
"""Probability a rater is first thought to name the true class with, and any other class with the rest."""

_MOST_RATERS = 32
"""With more of them the product of their probabilities might leave the range of a float64."""


@dataclass(frozen=True)
class StapleEstimate:
    """What STAPLE found.

    Args:
        mask: most probable class of each voxel, shape ``(I, J, K)``; ties go to the lower class number.
        performance: shape ``(R, L, L)``; ``[r, s, t]`` is the probability that rater ``r`` names class ``s`` where the truth
            is ``t``.
        prior: shape ``(L,)``, share of each class in the region that was looked at.
        rounds: how often the estimate was renewed; 0 where the raters agree everywhere.
    """

    mask: LabelArray
    performance: NDArray[np.float64]
    prior: NDArray[np.float64]
    rounds: int


def majority(masks: Sequence[LabelArray], classes: int) -> LabelArray:
    """The class most raters chose, voxel by voxel; the lower class number where several got as many votes.

    So of 2 votes for background and 2 for gray matter background remains, and an outline needs more than half of the raters.

    Args:
        masks: one a rater, all of one shape.
        classes: number of classes; every value lies below it.

    Raises:
        InputError: there is no mask, shapes differ, or a value is no class.
    """
    _check(masks, classes)
    winner = np.zeros(masks[0].shape, dtype=np.uint8)
    most = _votes(masks, 0)
    for number in range(1, classes):
        votes = _votes(masks, number)
        better = votes > most
        winner[better] = number
        most = np.maximum(most, votes)
    return winner


def staple(masks: Sequence[LabelArray], classes: int, *, most_rounds: int = 500, tolerance: float = 1e-9) -> StapleEstimate:
    """Estimate the truth and each rater's performance together, by expectation maximisation.

    Warfield, Zou and Wells 2004, IEEE Trans. Med. Imaging 23(7):903-921, in its form for several classes, without a spatial
    prior. Only the smallest box that holds every voxel the raters differ in is looked at; outside of it all agree, and there
    is nothing to estimate. In a larger region background would outweigh everything else in the prior.

    Args:
        masks: one a rater, all of one shape ``(I, J, K)``.
        classes: number of classes ``L``; every value lies below it.
        most_rounds: rounds after which the estimate is taken as it is.
        tolerance: the estimate is taken when no performance changed by more than this.

    Raises:
        InputError: there is no mask, shapes differ, or a value is no class.
    """
    _check(masks, classes)
    box = _box_of_disagreement(masks)
    mask = np.array(masks[0], dtype=np.uint8)
    if box is None:
        counts = np.bincount(mask.ravel(), minlength=classes)
        return StapleEstimate(mask, np.tile(np.eye(classes), (len(masks), 1, 1)), counts / counts.sum(), 0)
    # Voxels in which every rater says the same as in another one share their estimate: the few patterns are all there is.
    said = np.stack([each[box].ravel() for each in masks])
    patterns, which, counts = np.unique(said, axis=1, return_inverse=True, return_counts=True)
    chosen = np.stack([patterns == number for number in range(classes)], axis=1).astype(np.float64)
    prior = (chosen * counts).sum(axis=(0, 2)) / (counts.sum() * len(masks))
    performance, posterior, rounds = _estimate(patterns, chosen, counts.astype(np.float64), prior, most_rounds, tolerance)
    mask[box] = posterior.argmax(axis=0).astype(np.uint8)[which.ravel()].reshape(mask[box].shape)
    return StapleEstimate(mask, performance, prior, rounds)


def _estimate(
    patterns: LabelArray,
    chosen: NDArray[np.float64],
    counts: NDArray[np.float64],
    prior: NDArray[np.float64],
    most_rounds: int,
    tolerance: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Performance ``(R, L, L)``, posterior ``(L, P)`` of every pattern, and rounds; ``chosen`` is ``(R, L, P)``."""
    raters, classes = len(patterns), len(prior)
    start = np.full((classes, classes), (1.0 - _START) / max(1, classes - 1))
    np.fill_diagonal(start, _START)
    performance = np.tile(start, (raters, 1, 1))
    posterior = _posterior(patterns, performance, prior)
    for number in range(1, most_rounds + 1):
        weight = posterior * counts
        of_class = weight.sum(axis=1)
        # Sum over the patterns of [rater says s] · weight of truth t: (R, L, 1, P) · (1, 1, L, P).
        joint = (chosen[:, :, None, :] * weight[None, None]).sum(axis=3)
        # A class that no rater chose has no weight and keeps what it had.
        renewed = np.divide(joint, of_class, out=performance.copy(), where=of_class > 0)
        change = float(np.abs(renewed - performance).max())
        performance = renewed
        posterior = _posterior(patterns, performance, prior)
        if change <= tolerance:
            return performance, posterior, number
    return performance, posterior, most_rounds


def _posterior(patterns: LabelArray, performance: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of each class ``(L, P)`` for what the raters said ``(R, P)``, by Bayes."""
    likelihood = np.repeat(prior[:, None], patterns.shape[1], axis=1)
    for rater, said in enumerate(patterns):
        likelihood *= performance[rater][said].T
    # Every pattern occurs, so some class gives it a probability above 0.
    posterior: NDArray[np.float64] = likelihood / likelihood.sum(axis=0)
    return posterior


def _votes(masks: Sequence[LabelArray], number: int) -> LabelArray:
    votes = np.zeros(masks[0].shape, dtype=np.uint8)
    for mask in masks:
        votes += mask == number
    return votes


def _box_of_disagreement(masks: Sequence[LabelArray]) -> tuple[slice, slice, slice] | None:
    differ = np.zeros(masks[0].shape, dtype=np.bool_)
    for mask in masks[1:]:
        differ |= mask != masks[0]
    if not differ.any():
        return None
    ends = [np.flatnonzero(differ.any(axis=tuple(other for other in range(3) if other != axis)))[[0, -1]] for axis in range(3)]
    first, second, third = (slice(int(start), int(stop) + 1) for start, stop in ends)
    return first, second, third


def _check(masks: Sequence[LabelArray], classes: int) -> None:
    shapes = {mask.shape for mask in masks}
    if len(shapes) != 1 or not 1 <= len(masks) <= _MOST_RATERS or any(mask.ndim != 3 for mask in masks):
        raise InputError(
            f"raters: found {len(masks)} masks of shapes {sorted(shapes)}, expected 1 to {_MOST_RATERS} of one shape with three axes"
        )
    largest = max(int(mask.max()) for mask in masks)
    if largest >= classes:
        raise InputError(f"raters: found class {largest} in a mask, expected 0 to {classes - 1}; correct the mask")
