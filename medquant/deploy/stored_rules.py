"""The rules of a model file by which a scan becomes what its network sees: read, or refused, before anything relies on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from medquant.data.prepared import Preparation
from medquant.deploy.metadata import ModelMetadata
from medquant.errors import CheckpointError

_MOST_SHOWN = 200


@dataclass(frozen=True)
class RegionRule:
    """What of a scan a network sees.

    Args:
        kind: ``whole``; ``coarse``, what a coarse network finds; ``paper_truth_centred``, a crop around the truth.
        margin_mm: kept around what the coarse network finds.
        minimum: least size of the region, or size of the crop, in pixels of the network's grid; None for ``whole``.
    """

    kind: Literal["whole", "coarse", "paper_truth_centred"] = "whole"
    margin_mm: float = 0.0
    minimum: tuple[int, int] | None = None

    @staticmethod
    def from_json(data: Mapping[str, object]) -> RegionRule:
        """Read the rule of a model file.

        Raises:
            CheckpointError: it is not readable.
        """
        kind, margin, minimum = data.get("kind", "whole"), data.get("margin_mm"), data.get("minimum")
        if kind == "whole":
            return RegionRule()
        sides = [side for side in minimum if type(side) is int and side > 0] if isinstance(minimum, list) and len(minimum) == 2 else []
        if len(sides) == 2 and kind == "paper_truth_centred":
            return RegionRule("paper_truth_centred", minimum=(sides[0], sides[1]))
        number = float(margin) if isinstance(margin, int | float) and not isinstance(margin, bool) else math.nan
        if len(sides) != 2 or kind != "coarse" or not 0 <= number < math.inf:
            shown = f"{dict(data)!r}"[:_MOST_SHOWN]
            raise CheckpointError(f"stored region rule {shown} is not readable, expected kind, margin_mm and minimum; train the model anew")
        return RegionRule("coarse", number, (sides[0], sides[1]))


def check_rules(metadata: ModelMetadata, has_coarse: bool) -> None:
    """Refuse metadata by whose rules no scan could be prepared.

    Args:
        metadata: of a model file.
        has_coarse: whether the file holds a coarse network.

    Raises:
        CheckpointError: a rule is not readable, or the region needs a coarse network and there is none.
    """
    Preparation.from_json(metadata.preparation)
    if RegionRule.from_json(metadata.region).kind == "coarse" and not has_coarse:
        raise CheckpointError("the region is what a coarse network finds, but there is none in the file; export the model anew")
