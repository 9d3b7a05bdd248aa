"""What a dataset reader may be told by the user."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from medquant.data.stored import ArrayCache

RaterRule = Literal["majority", "each", "staple"]


@dataclass(frozen=True)
class ReadOptions:
    """How a dataset is read.

    Args:
        raters: where several raters drew each case: ``majority`` (their vote), ``each`` (training takes each rater's mask in
            turn, scoring the vote), or ``staple`` (the estimate of Warfield et al. 2004).
        cache: where decoded scans are kept.
    """

    raters: RaterRule = "majority"
    cache: ArrayCache = field(default_factory=lambda: ArrayCache(None))
