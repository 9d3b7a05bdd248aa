"""The first lines of a report, in words: which networks, how good, how large, on what, and what needs no network."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from medquant.report.comparison import Group, half_interval, is_float
from medquant.report.record import ReportInput, RunRecord
from medquant.report.tables import format_bytes

_FEW_CASES = 20


def headline(asked: ReportInput) -> str:
    """One line: the smallest quantized network, how much smaller it is, and what that costs; "" where there is none."""
    sized = [(size, group) for group in asked.groups if not is_float(group.documents[0]) and (size := group.size_bytes("model_file_bytes"))]
    if not sized:
        return ""
    size, group = min(sized, key=lambda each: each[0])
    full = group.size_bytes("float_bytes")
    smaller = f", {full / size:.1f} times less than its parameters in float" if full else ""
    names = list(_mapping(group.documents[0]["dice"]))
    scores = "; ".join(
        f"{name} {100 * statistics.fmean(found):.2f}{_against_twin(group, name)}" for name in names if (found := group.scores("dice", name))
    )
    return f"Smallest: {group.label} in {format_bytes(size)}{smaller}. Dice × 100: {scores}."


def tested_on(asked: ReportInput) -> str:
    """The sentence that says what the figures are measured on."""
    document = asked.records[0].evaluation
    split, data = document["split"], document["data"]
    if asked.folds:
        count = sum(len(record.evaluation["split"]["cases"]) for record in asked.records)
        return f"Data: {data.get('name', 'unnamed')}; the runs tested different cases of it (folds or held-out sites), {count} in all."
    count = len(split["cases"])
    cases = "1 case" if count == 1 else f"{count} cases"
    rule = f" Split: {split['rule']}." if split.get("rule") else ""
    return f"Tested on {cases} of {data.get('name', 'unnamed data')}, part “{split.get('part', 'test')}”.{rule}"


def network_text(record: RunRecord) -> str:
    """What network a run is of, in a few words."""
    network = record.evaluation.get("network")
    if not isinstance(network, Mapping) or "name" not in network:
        return "network not recorded"
    parts = [str(network["name"])]
    parts += [f"{network[key]} {key}" for key in ("channels",) if key in network]
    parts += [f"depth {network['depth']}"] if "depth" in network else []
    parts += [f"{network['dimensions']}D"] if "dimensions" in network else []
    return ", ".join(parts)


def bits_text(group: Group) -> str:
    """The bits of a group in words."""
    bits = _mapping(group.documents[0]["bits"])
    if is_float(group.documents[0]):
        return "weights and activations in 32-bit float"
    method = f", method {bits['method']}" if bits.get("method") else ""
    return f"weights in {_bits(bits['weights'])}, activations in {_bits(bits['activations'])}{method}"


def dice_text(group: Group, name: str) -> str:
    """Dice of a class with its interval, as in ``95.06 (94.81–95.31)``."""
    scores = group.scores("dice", name)
    if not scores:
        return "–"
    ends = dice_interval(group, name)
    shown = f"{100 * statistics.fmean(scores):.2f}"
    return shown if ends is None else f"{shown} ({100 * ends[0]:.2f}–{100 * ends[1]:.2f})"


def dice_interval(group: Group, name: str) -> tuple[float, float] | None:
    """95 % interval of a class's mean Dice: over the runs where there are several, over the cases of a single one."""
    scores = group.scores("dice", name)
    half = half_interval(scores)
    if half is not None:
        mean = statistics.fmean(scores)
        return mean - half, mean + half
    ends = _mapping(_mapping(group.documents[0]["dice"]).get(name)).get("interval_95") if len(group.documents) == 1 else None
    return (float(ends[0]), float(ends[1])) if isinstance(ends, list | tuple) and len(ends) == 2 else None


def interval_note(asked: ReportInput) -> str:
    """What the intervals are of."""
    several = [group for group in asked.groups if len(group.documents) > 1]
    if not several:
        return "Intervals: 95 %, over the test cases of the one run."
    if len(several) == len(asked.groups):
        return (
            "Intervals: 95 %, over the runs of a group (other seeds or folds), the same test cases in each."
            if not asked.folds
            else "Dice of folds is the mean of the folds' means, however many cases each has. Intervals: 95 %, over the folds of a group."
        )
    return "Intervals: 95 %, over the runs of a group; of a single run over its test cases, which is another thing: do not compare the two."


def group_sentences(asked: ReportInput) -> list[tuple[str, str]]:
    """For each group its label and a sentence."""
    return [(group.label, _sentence(asked, group)) for group in asked.groups]


def _sentence(asked: ReportInput, group: Group) -> str:
    names = list(_mapping(group.documents[0]["dice"]))
    scores = "; ".join(f"{name} {dice_text(group, name)}{_against_twin(group, name)}" for name in names)
    count = len(group.documents)
    runs = "1 run" if count == 1 else f"{count} runs"
    network = network_text(asked.records_of(group)[0])
    return f"{network}; {bits_text(group)} ({runs}). Dice × 100: {scores}. {_memory_sentence(group)}"


def _against_twin(group: Group, name: str) -> str:
    losses = group.losses(name)
    if not losses:
        return ""
    loss = 100 * statistics.fmean(losses)
    if abs(loss) < 0.005:
        return ", the same as its float twin"
    return f", {abs(loss):.2f} {'above' if loss > 0 else 'below'} its float twin"


def _memory_sentence(group: Group) -> str:
    own, full = group.size_bytes("model_file_bytes"), group.size_bytes("float_bytes")
    parameters = group.size_bytes("parameter_bytes")
    size = own or parameters
    parts = []
    if size is not None:
        what = "The file takes" if own else "There is no file of this network; its parameters would take"
        smaller = ""
        if full and not is_float(group.documents[0]):
            smaller = f", {full / size:.1f} times less than the {format_bytes(full)} of its parameters in float"
        parts.append(f"{what} {format_bytes(size)}{smaller}.")
    process = group.size_bytes("process_peak_bytes")
    if process is not None:
        parts.append(f"A process that predicts one image or block of {_shape(group)} took {format_bytes(process)} above idle.")
    return " ".join(parts)


def _shape(group: Group) -> str:
    shape = _mapping(group.documents[0]["memory"]).get("input_shape")
    return " × ".join(str(length) for length in shape[2:]) if isinstance(shape, list) and len(shape) > 2 else "its size"


def baseline_sentence(asked: ReportInput) -> str:
    """What predictions that never look at the image reach."""
    found = _mapping(asked.records[0].evaluation.get("baseline"))
    best: dict[str, tuple[float, str]] = {}
    for label, scores in found.items():
        for name, score in _mapping(scores).items():
            if isinstance(score, int | float) and score > best.get(name, (0.0, ""))[0]:
                best[name] = (float(score), str(label).replace("all_", "", 1))
    if not best:
        return ""
    parts = [f"{name} {100 * score:.2f} (everything is called {label})" for name, (score, label) in best.items()]
    return f"Without looking at the image, Dice × 100 would be: {'; '.join(parts)}. A network is worth what it adds to that."


def baselines(asked: ReportInput) -> dict[str, float]:
    """Class → Dice of the best prediction that is one class everywhere."""
    rows = [_mapping(scores) for scores in _mapping(asked.records[0].evaluation.get("baseline")).values()]
    names = list(_mapping(asked.records[0].evaluation["dice"]))
    return {name: max((float(row.get(name) or 0.0) for row in rows), default=0.0) for name in names}


def limits(asked: ReportInput) -> list[str]:
    """What the figures cannot say."""
    found = []
    count = len({case for record in asked.records for case in record.evaluation["split"]["cases"]})
    if count < _FEW_CASES:
        cases = "1 test case" if count == 1 else f"{count} test cases"
        found.append(f"Only {cases}: the intervals are wide, and rare failures cannot be seen.")
    rules = {str(_mapping(record.evaluation["split"]).get("rule", "")) for record in asked.records}
    if any("one stack" in rule or "same animal" in rule for rule in rules):
        found.append("All cases are of one stack: what the network does with another animal, patient or microscope is not known.")
    elif not asked.folds:
        found.append("Tested on one part of one data set: what the network does with scans from elsewhere is not known.")
    if any(len(group.documents) == 1 for group in asked.groups):
        found.append("Networks of a single run: a second training with another seed would give other figures.")
    if any(group.size_bytes("model_file_bytes") is None for group in asked.groups):
        found.append("Networks without a model file were scored as a simulation in float; they are no integer program.")
    found.append("Not a medical device. Not validated for diagnosis or treatment.")
    return found


def _bits(value: object) -> str:
    return "1 bit" if value == 1 else f"{value} bits" if value != 32 else "32-bit float"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
