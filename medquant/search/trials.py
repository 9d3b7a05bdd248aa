"""What a trial is: one configuration, known by its digest, and what came of it. Both are plain values that go through JSON unchanged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from medquant.config.schema import Config

Status = Literal["finished", "failed", "pruned", "stopped", "lost"]
Keep = Literal["run", "model", "scores"]

ID_DIGITS = 16

# Where things lie and how many processes look after them: the same trial elsewhere is the same trial.
_PLACES = (("data", "path"), ("data", "cache"), ("data", "workers"), ("train", "threads"), ("train", "twin_from"))


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Args:
        id: digest of the configuration and the data, see :func:`trial_id`.
        name: what tables call it, unique in a sweep.
        config: the whole configuration, every default written out, as JSON values.
        varied: dotted key → value of what the sweep varies.
        keep: what stays of it on disk.
        group: the sampler's study it belongs to, "" where nothing is sampled.
        float_id: the trial whose warm start and float twin it takes, None where it trains its own.
        is_float: whether it is such a trial itself.
        impossible: why it cannot run, "" where it can.
    """

    id: str
    name: str
    config: Mapping[str, Any]
    varied: Mapping[str, Any] = field(default_factory=dict)
    keep: Keep = "scores"
    group: str = ""
    float_id: str | None = None
    is_float: bool = False
    impossible: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Trial:
        """What ``to_json`` gave."""
        return Trial(**values)


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Args:
        status: ``finished``; ``failed``, with its text; ``pruned``; ``stopped`` (asked to, saved where its run folder is kept);
            ``lost`` (the process it ran in died).
        document: scores, sizes, the validation curve; of a pruned trial the curve alone.
        error: what went wrong, in one text.
        elapsed_s: from the start of the trial to its end.
    """

    status: Status
    document: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    elapsed_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Outcome:
        """What ``to_json`` gave."""
        return Outcome(**values)


def trial_id(config: Config, content_sha256: str) -> str:
    """The digest a trial is known by: of every value of its configuration but places and thread counts, and of its data.

    Args:
        config: the whole configuration.
        content_sha256: digest of the dataset, which stands for ``data.path``.
    """
    dumped = config.model_dump(mode="json")
    for section, key in _PLACES:
        del dumped[section][key]
    return digest({"config": dumped, "content_sha256": content_sha256})


def digest(values: object) -> str:
    """SHA-256 of JSON values, the order of keys set aside, shortened."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]
