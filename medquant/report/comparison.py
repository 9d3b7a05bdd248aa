"""Several runs side by side: one row a bit width, averaged over its seeds, with the difference to each run's own float twin."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medquant.errors import InputError
from medquant.report.plots import DicePoint, dice_against_memory
from medquant.report.tables import Table, format_bytes

FLOAT = "float"
DEFAULT_METHOD = "fixed_point"
_SCORING: Mapping[str, object] = {"threshold": 0.5, "protocol": "ours", "batch_statistics": False, "hard_ternary": False}
"""How runs are scored that do not say: Dice at another threshold, or slice by slice, is no other seed of the same."""
_SIZES = (
    ("parameters", "parameter_bytes"),
    ("paper's count", "paper_bytes"),
    ("file", "model_file_bytes"),
    ("activations", "activation_peak_bytes"),
    ("process", "process_peak_bytes"),
)


@dataclass(frozen=True)
class Group:
    """The runs of one bit width, method and its options.

    Args:
        label: ``float``, for example ``W4A6``, or ``W4A6 learned_step`` (see :func:`run_label`); of different networks, what differs.
        documents: their ``eval.json``, one a seed.
    """

    label: str
    documents: tuple[Mapping[str, object], ...]

    def scores(self, section: str, name: str) -> list[float]:
        """Mean over cases of one figure, one entry a run that has one."""
        return _known(_mean_of(_mapping(document[section]), name) for document in self.documents)

    def losses(self, name: str) -> list[float]:
        """Dice minus that of the run's float twin, one entry a run that has both."""
        return _known(
            _mean_of(_mapping(document["dice"]), name) - _mean_of(_mapping(_mapping(document["float_twin"])["dice"]), name)
            for document in self.documents
            if document.get("float_twin")
        )

    def size_bytes(self, key: str) -> int | None:
        """A size, the largest over the runs (they differ by a few bytes at the most)."""
        found = [value for document in self.documents if isinstance(value := _mapping(document["memory"]).get(key), int)]
        return max(found) if found else None


def group_runs(documents: Sequence[Mapping[str, object]]) -> list[Group]:
    """Runs by bit width, widest first, by method and its options, and by network: a label says what differs.

    Raises:
        InputError: no run, or runs that were scored on different cases or classes.
    """
    if not documents:
        raise InputError("no run to compare; give at least one finished run folder")
    scored = {
        (str(_mapping(d["data"])["content_sha256"]), str(_mapping(d["split"])["cases"]), tuple(_mapping(d["dice"]))) for d in documents
    }
    if len(scored) > 1:
        raise InputError("the runs were scored on different data, cases or classes; compare runs of one data set and one part")
    networks = [_network_text(document) for document in documents]
    differences = _differences(documents)
    # Widest first; networks of one width in the order they were named.
    order = list(dict.fromkeys(networks))
    found: dict[tuple[int, int, str, int], list[Mapping[str, object]]] = {}
    for document, network, difference in zip(documents, networks, differences, strict=True):
        bits = _mapping(document["bits"])
        label = " ".join(text for text in (run_label(document), difference) if text)
        key = (-int(str(bits["weights"])), -int(str(bits["activations"])), label, order.index(network))
        found.setdefault(key, []).append(document)
    return [Group(key[2], tuple(found[key])) for key in sorted(found)]


def _network_text(document: Mapping[str, object]) -> str:
    """What a run's network is and how it was scored, as one text; runs that do not say are taken to be of the same one."""
    return json.dumps(_network(document), sort_keys=True)


def _network(document: Mapping[str, object]) -> Mapping[str, object]:
    network = _mapping(document.get("network") or {})
    # A float network has no edge layers of other bits, whatever its configuration says.
    own = {key: value for key, value in network.items() if key != "edge_bits" or not is_float(document)}
    scoring = _mapping(document.get("scoring") or {})
    return {**own, **{key: scoring.get(key, default) for key, default in _SCORING.items()}} if own else own


def _differences(documents: Sequence[Mapping[str, object]]) -> list[str]:
    """For each run, in words, what of its network is not the same in all of them."""
    networks = [_network(document) for document in documents]
    known = [network for network in networks if network]
    keys = sorted({key for network in known for key in network}, key=lambda key: (key != "name", key))
    differing = [key for key in keys if len({json.dumps(network[key], sort_keys=True) for network in known if key in network}) > 1]
    found = []
    for network in networks:
        shown = [str(network[key]) if key == "name" else f"{key}={_value_text(network[key])}" for key in differing if key in network]
        found.append(", ".join(shown) if network else "network not recorded" if differing else "")
    return found


def _value_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def run_label(document: Mapping[str, object]) -> str:
    """What a run is called in a table: ``float``, or its bits, its method where it is not the default one, and that one's options.

    Runs of one label differ in seed and fold alone, so that a mean over them means something.
    """
    bits = _mapping(document["bits"])
    if is_float(document):
        return FLOAT
    method = bits.get("method", DEFAULT_METHOD)
    options = [f"{key}={value}" for key, value in sorted(_mapping(bits.get("options") or {}).items())]
    return " ".join([f"W{bits['weights']}A{bits['activations']}", *([] if method == DEFAULT_METHOD else [str(method)]), *options])


def is_float(document: Mapping[str, object]) -> bool:
    """Whether a run's network is float altogether."""
    bits = _mapping(document["bits"])
    return bool(bits["weights"] == bits["activations"] == 32)


def refuse_mixed_networks(documents: Sequence[Mapping[str, object]]) -> None:
    """Refuse runs that differ in more than seed, fold and bits: a row is a mean over them.

    Raises:
        InputError: they are of different networks or layer rules.
    """
    models = {json.dumps({**_mapping(d["network"]), "edge_bits": None}, sort_keys=True) for d in documents if "network" in d}
    if len(models) > 1:
        names = sorted({str(_mapping(d["network"]).get("name", "unet")) for d in documents if "network" in d})
        raise InputError(
            f"the runs are of different networks ({', '.join(names)}) or layer rules; compare runs that differ in bits, method, seed"
        )


def comparison_table(groups: Sequence[Group]) -> Table:
    """Dice (mean ± standard deviation over seeds), loss against the float twin, the dataset's own scores, sizes."""
    first = groups[0].documents[0]
    # The challenge's own scores; surface distances by class stand in eval.json, for a table they are too many.
    official = first.get("official_metrics")
    classes, metrics = list(_mapping(first["dice"])), list(official if isinstance(official, list) else _mapping(first["metrics"]))
    columns = ["network", "seeds"]
    columns += [title for name in classes for title in (f"Dice {name}", "vs float")]
    columns += [*metrics, *(title for title, _ in _SIZES)]
    rows = []
    for group in groups:
        row = [group.label, str(len(group.documents))]
        for name in classes:
            row += [_spread(group.scores("dice", name), 100.0, 2), _difference(group.losses(name))]
        row += [_spread(group.scores("metrics", name), 1.0, 4) for name in metrics]
        row += ["–" if (size := group.size_bytes(key)) is None else format_bytes(size) for _, key in _SIZES]
        rows.append(tuple(row))
    return Table(tuple(columns), tuple(rows))


def draw_comparison(groups: Sequence[Group], out_path: Path) -> None:
    """Dice against parameter bytes, one point a bit width; bars are 95 % intervals over the seeds where there are two or more."""
    points = []
    for name in _mapping(groups[0].documents[0]["dice"]):
        for group in groups:
            scores, size = (
                group.scores("dice", name),
                group.size_bytes("float_bytes" if is_float(group.documents[0]) else "parameter_bytes"),
            )
            if not scores:
                continue
            mean = statistics.fmean(scores)
            half = half_interval(scores)
            ends = (None, None) if half is None else (mean - half, mean + half)
            points.append(DicePoint(group.label, size or 1, mean, ends[0], ends[1], name))
    dice_against_memory(points, out_path)


def half_interval(scores: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of a mean (Student's t), None of fewer than two scores."""
    if len(scores) < 2:
        return None
    from scipy import stats

    return float(stats.t.ppf(0.975, len(scores) - 1)) * statistics.stdev(scores) / math.sqrt(len(scores))


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _spread(values: Sequence[float], factor: float, digits: int) -> str:
    if not values:
        return "–"
    mean = factor * statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {factor * statistics.stdev(values):.{digits}f}"


def _difference(values: Sequence[float]) -> str:
    return f"{100.0 * statistics.fmean(values):+.2f}" if values else ""


def _mean_of(section: Mapping[str, object], name: str) -> float:
    mean = _mapping(section.get(name)).get("mean")
    return float(mean) if isinstance(mean, int | float) else math.nan


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
