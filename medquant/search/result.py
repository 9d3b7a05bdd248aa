"""What a search came to: the document, the table, the sentences, and the configuration files it leaves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medquant.config.load import dump_config
from medquant.config.schema import Config
from medquant.data.atomic import write_text
from medquant.report.tables import Table, format_bytes
from medquant.search.candidates import Candidate
from medquant.search.request import ResolvedSearch
from medquant.search.sensitivity import Sensitivity
from medquant.search.space import SearchSpace
from medquant.search.verdict import Comparison, seed_dice, sentence
from medquant.train.run_folder import write_json

SCHEMA = 1


@dataclass(frozen=True)
class CandidateResult:
    """A trained plan.

    Args:
        candidate: the plan.
        runs: run folders, a seed each.
        validation: mean validation Dice, 0 to 1, a seed each.
        evaluations: ``eval.json`` on the test part, a seed each; empty before the end.
    """

    candidate: Candidate
    runs: tuple[Path, ...]
    validation: tuple[float, ...]
    evaluations: tuple[Mapping[str, Any], ...] = ()

    @property
    def mean_validation(self) -> float:
        """Over the seeds: what plans are chosen by."""
        return statistics.fmean(self.validation)

    @property
    def name(self) -> str:
        """Label and size, for sentences."""
        return f"{self.candidate.label} ({self.candidate.channels} channels, {self.candidate.parameter_bytes:,} bytes)"


@dataclass(frozen=True)
class FloatResult:
    """The float network of a width: validation Dice a seed each, and evaluations of plans over it, which hold its test scores."""

    channels: int
    validation: tuple[float, ...]
    evaluations: tuple[Mapping[str, Any], ...]

    @property
    def test(self) -> list[float]:
        """Mean test Dice, a seed each."""
        return [seed_dice(each["float_twin"]) for each in self.evaluations if each.get("float_twin")]


@dataclass(frozen=True)
class SearchResult:
    """Everything a search came to.

    Args:
        search: what was asked.
        budgets: bytes, by width.
        candidates: all plans, scored.
        floats: the float networks.
        best: chosen on validation.
        best_uniform: the best of the uniform plans on validation.
        best_searched: the best of the searched plans on validation; None where the search came to uniform plans alone.
        comparisons: searched minus uniform on the test part, by slug and width of the uniform plan.
        sensitivities: by width.
        plans: open layers, by width.
        tried: plans trained for ``--max-dice-drop``.
        trainings: made by this call; others were there already.
    """

    search: ResolvedSearch
    budgets: Mapping[int, int]
    candidates: tuple[CandidateResult, ...]
    floats: tuple[FloatResult, ...]
    best: CandidateResult
    best_uniform: CandidateResult
    best_searched: CandidateResult | None
    comparisons: Mapping[tuple[str, int], Comparison]
    sensitivities: Mapping[int, Sensitivity]
    plans: Mapping[int, SearchSpace]
    tried: tuple[Mapping[str, object], ...] = ()
    trainings: int = 0

    def comparison(self, uniform: CandidateResult) -> Comparison:
        """The best searched plan against a uniform one."""
        return self.comparisons[uniform.candidate.slug, uniform.candidate.channels]

    @property
    def sentences(self) -> list[str]:
        """What was chosen, and whether searching was worth it."""
        if self.best_searched is None:
            return [f"The search comes to a uniform plan itself: use {self.best_uniform.name}."]
        lines = [f"Chosen on validation (best.yaml): {self.best.name}."]
        seeds = len(self.search.settings.seeds)
        others = [each for each in self.candidates if not each.candidate.searched and each is not self.best_uniform]
        for uniform in (self.best_uniform, *others):
            # Of the uniform plans the best one alone is written to a file.
            file = "uniform.yaml" if uniform is self.best_uniform else ""
            lines.append(sentence(self.comparison(uniform), self.best_searched.name, uniform.name, seeds, file))
        return [lines[0], *lines[2:], lines[1]]

    def table(self) -> Table:
        """One row a plan, the best on validation first, float networks last."""
        columns = ("plan", "channels", "parameters", "activations", "validation Dice", "test Dice", "searched − this, test")
        rows = [self._row(each) for each in sorted(self.candidates, key=lambda each: -each.mean_validation)]
        for each in self.floats:
            size = format_bytes(each.evaluations[0]["memory"]["float_bytes"])
            rows.append(("float", str(each.channels), size, "", _spread(each.validation), _spread(each.test), ""))
        return Table(columns, tuple(rows))

    def _row(self, each: CandidateResult) -> tuple[str, ...]:
        plan = each.candidate
        against = ""
        if not plan.searched and self.best_searched is not None:
            summary = self.comparison(each).summary
            ends = "" if summary.interval is None else f" ({summary.interval.low:+.2f} to {summary.interval.high:+.2f})"
            against = "–" if summary.mean is None else f"{summary.mean:+.2f}{ends}"
        sizes = format_bytes(plan.parameter_bytes), format_bytes(plan.activation_peak_bytes)
        scores = _spread(each.validation), _spread([seed_dice(found) for found in each.evaluations])
        return plan.label, str(plan.channels), *sizes, *scores, against

    def to_json(self) -> dict[str, object]:
        """The content of ``search.json``."""
        settings = self.search.settings
        return {
            "schema": SCHEMA,
            "command": self.search.command,
            "settings": asdict(settings),
            "data": {"name": self.search.dataset.info.name, "content_sha256": self.search.dataset.content_sha256},
            "split": self.search.split.to_json(),
            "budgets": {str(width): budget for width, budget in self.budgets.items()},
            "plans": [self._plan_json(each) for each in self.candidates],
            "float": [
                {"channels": each.channels, "validation_dice": list(each.validation), "test_dice": _known(each.test)}
                for each in self.floats
            ],
            "chosen": self.best.candidate.slug,
            "chosen_uniform": self.best_uniform.candidate.slug,
            "chosen_searched": None if self.best_searched is None else self.best_searched.candidate.slug,
            "comparisons": [
                {"uniform": slug, "channels": width, "beats": each.beats, **each.to_json()}
                for (slug, width), each in self.comparisons.items()
            ],
            "sensitivity": {str(width): _sensitivity_json(each) for width, each in self.sensitivities.items()},
            "tried": [dict(each) for each in self.tried],
            "trainings": self.trainings,
            "sentences": self.sentences,
        }

    def _plan_json(self, each: CandidateResult) -> dict[str, object]:
        plan, quant = each.candidate, self.plans[each.candidate.channels].configured(each.candidate.choice).quant
        return {
            "label": plan.label,
            "slug": plan.slug,
            "searched": plan.searched,
            "channels": plan.channels,
            "parameter_bytes": plan.parameter_bytes,
            "activation_peak_bytes": plan.activation_peak_bytes,
            "predicted": plan.predicted,
            "weight_bits": dict(plan.choice.weights),
            "activation_bits": dict(plan.choice.activations),
            "quant": {"wbits": quant.wbits, "abits": quant.abits, "edge_bits": quant.edge_bits, "layer_bits": list(quant.layer_bits)},
            "runs": [run.name for run in each.runs],
            "validation_dice": list(each.validation),
            "test_dice": _known([seed_dice(found) for found in each.evaluations]),
        }


def write_result(result: SearchResult, best: Config, uniform: Config) -> None:
    """Write ``search.json``, ``table.md``, ``table.csv``, ``best.yaml`` and ``uniform.yaml``; ``searches/`` keeps one of each budget.

    Raises:
        UsageError, CheckpointError: the disk is full or cannot be written.
    """
    out, table = result.search.out, result.table()
    document = result.to_json()
    write_text(out / "table.md", table.to_markdown())
    write_text(out / "table.csv", table.to_csv())
    write_text(out / "best.yaml", dump_config(best))
    write_text(out / "uniform.yaml", dump_config(uniform))
    settings = result.search.settings
    bound = f"{settings.budget}B" if settings.budget is not None else f"drop{settings.max_dice_drop:g}"
    kept = out / "searches"
    kept.mkdir(exist_ok=True)
    write_json(kept / f"{bound}-{settings.sensitivity}.json", document)
    write_json(out / "search.json", document)


def _sensitivity_json(found: Sensitivity) -> dict[str, object]:
    return {
        **found.to_json(),
        "rise_measured": {kind: _plain(found.measured(kind)) for kind in ("weights", "activations")},
        "rise_expected": {"weights": _plain(found.expected())},
    }


def _plain(costs: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, float]]:
    return {name: {str(bits): cost for bits, cost in each.items()} for name, each in costs.items()}


def _known(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def _spread(values: Sequence[float]) -> str:
    known = [100.0 * value for value in values if not math.isnan(value)]
    if not known:
        return "–"
    mean = f"{statistics.fmean(known):.2f}"
    return mean if len(known) < 2 else f"{mean} ± {statistics.stdev(known):.2f}"
