"""The search from beginning to end: float networks, sensitivities, plans within the budget, trainings, the choice, the verdict.

Whatever is chosen is chosen on the validation part. The test part is scored once, when everything has been chosen.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medquant.config.schema import Config
from medquant.errors import InterruptedRunError, QualityGateError, UsageError
from medquant.predict.blocks import shown_at_once
from medquant.search.allocation import Costs
from medquant.search.candidates import (
    Candidate,
    largest_bytes,
    searched_candidate,
    searched_weights,
    smallest_bytes,
    smallest_peak,
    uniform_candidates,
)
from medquant.search.request import ResolvedSearch, SearchRequest, keep_request, resolve_search
from medquant.search.result import CandidateResult, FloatResult, SearchResult, write_result
from medquant.search.sensitivity import Effort, Sensitivity, SensitivityFile, SensitivityMeter
from medquant.search.space import SearchSpace, check_choices, with_graph
from medquant.search.trained import Trainings, noted_validation, validation_dice, with_channels
from medquant.search.verdict import compare
from medquant.train.building import configured_size_multiple, only_size, plan_network
from medquant.train.reporting import Reporter, SilentReporter
from medquant.train.run_folder import RunFolder
from medquant.train.session import TrainingSession

SENSITIVITY_NAME = "sensitivity.json"
# Budgets closer than this are not told apart by training.
_CLOSE_ENOUGH = 1.05


@dataclass(frozen=True)
class _Network:
    """One width: its open layers over trained weights, and what was measured on them."""

    space: SearchSpace
    sensitivity: Sensitivity

    def costs(self, name: str) -> Costs:
        return self.sensitivity.measured("weights") if name == "measured" else self.sensitivity.expected()

    def candidate(self, budget: int, activation_budget: int | None, name: str) -> Candidate:
        return searched_candidate(self.space, self.costs(name), self.sensitivity.measured("activations"), budget, activation_budget, name)


def run_search(request: SearchRequest, reporter: Reporter, stop_requested: Callable[[], bool]) -> SearchResult:
    """Search, train, choose and score.

    Raises:
        UsageError: the request cannot be met: a budget below the smallest plan, a folder of another search.
        ConfigError: mistakes in the recipe, or a run of another recipe.
        QualityGateError: no plan loses as little as was asked for.
        InterruptedRunError: stopped; --resume goes on.
        CheckpointError, InputError: files that are damaged, missing or full.
    """
    search = resolve_search(request)
    reporter.message(search.dataset.recognised)
    reporter.message(f"split: {search.split.rule}")
    spaces = _affordable(search, {width: _space(search, width) for width in search.settings.widths}, reporter)
    trainings = Trainings(
        search.out / "runs", search.dataset, search.split, search.command, reporter, stop_requested, _given(search, spaces)
    )
    if search.source is not None:
        # A run of another recipe is refused before anything is made.
        for (width, seed), source in trainings.given.items():
            trainings.session(with_channels(search.config, width), seed, source)
    keep_request(search)
    return _Search(search, trainings, reporter, stop_requested).run(spaces)


class _Search:
    """A checked search at work."""

    def __init__(self, search: ResolvedSearch, trainings: Trainings, reporter: Reporter, stop_requested: Callable[[], bool]) -> None:
        self.search, self.settings, self.trainings = search, search.settings, trainings
        self.reporter, self.stop_requested = reporter, stop_requested
        self.tried: list[dict[str, object]] = []

    def run(self, spaces: Mapping[int, SearchSpace]) -> SearchResult:
        store = SensitivityFile(self.search.out / SENSITIVITY_NAME)
        networks = {width: self._measure(space, store) for width, space in spaces.items()}
        floats = {width: self._floats(network.space.config) for width, network in networks.items()}
        budgets = self._budgets(networks, floats)
        candidates: list[Candidate] = []
        for width, budget in budgets.items():
            candidates += self._candidates(networks[width], budget)
        self.reporter.message(
            f"{len(candidates)} plans, {len(self.settings.seeds)} seeds: {len(candidates) * len(self.settings.seeds)} trainings, "
            "those that are there already included"
        )
        for candidate in candidates:
            self.reporter.message(
                f"plan {candidate.label}, {candidate.channels} channels: {candidate.parameter_bytes:,} bytes, "
                f"activations {candidate.activation_peak_bytes:,}"
            )
        trained = [self._train(networks[candidate.channels].space, candidate) for candidate in candidates]
        result = self._score(networks, floats, trained, budgets)
        write_result(result, self._config(networks, result.best), self._config(networks, result.best_uniform))
        for line in result.sentences:
            self.reporter.message(line)
        return result

    # --- before anything is quantized -------------------------------------------------------------------------------

    def _measure(self, space: SearchSpace, store: SensitivityFile) -> _Network:
        seed = self.settings.seeds[0]
        source = self.trainings.float_network(space.config, seed)
        session = self.trainings.session(space.config, seed, source)
        graph, _ = plan_network(session.config, session.network, session.inputs)
        over_weights = with_graph(space, graph)
        effort = Effort(self.settings.images, self.settings.vectors)
        return _Network(over_weights, SensitivityMeter(session, over_weights, store, effort, self.reporter, self.stop_requested).measure())

    def _floats(self, config: Config) -> tuple[float, ...]:
        """Validation Dice of the float network, a seed each."""
        found = []
        for seed in self.settings.seeds:
            source = self.trainings.float_network(config, seed)
            run = RunFolder.open(source)
            if source in self.trainings.given.values():
                session = self.trainings.session(config, seed, source)
                found.append(validation_dice(session, session.network.eval()))
            else:
                found.append(noted_validation(run))
        return tuple(found)

    # --- budgets ----------------------------------------------------------------------------------------------------

    def _budgets(self, networks: Mapping[int, _Network], floats: Mapping[int, tuple[float, ...]]) -> dict[int, int]:
        """The budget of each width; with ``max_dice_drop`` that of the smallest width that holds it alone."""
        if self.settings.budget is not None:
            return dict.fromkeys(networks, self.settings.budget)
        reference = max(statistics.fmean(scores) for scores in floats.values())
        trainings = self.settings.rounds * len(self.settings.seeds) * len(networks)
        self.reporter.message(
            f"float validation Dice {100 * reference:.2f}; the smallest plan within the drop takes at most {trainings} trainings"
        )
        found = {width: self._smallest(network, reference) for width, network in networks.items()}
        held = {width: budget for width, budget in found.items() if budget is not None}
        if not held:
            raise QualityGateError(
                f"no plan of up to {max(self.settings.weight_choices)} bits stays within {self.settings.max_dice_drop} points of the float "
                f"network's validation Dice, {100 * reference:.2f}; allow more, train longer, or give wider networks (--widths)"
            )
        width = min(held, key=lambda each: held[each])
        return {width: held[width]}

    def _smallest(self, network: _Network, reference: float) -> int | None:
        """Bytes of the smallest plan that holds, by bisection over the logarithm of the budget; None where the largest fails."""
        low, high = smallest_bytes(network.space), largest_bytes(network.space)
        guess = self._predicted(network, low, high)
        holds = None
        for number in range(self.settings.rounds):
            budget = guess if number == 0 else high if holds is None else round(math.sqrt(low * holds))
            candidate = network.candidate(budget, self.settings.activation_budget, self._drivers()[0])
            drop = 100.0 * (reference - statistics.fmean(self._train(network.space, candidate).validation))
            within = drop <= (self.settings.max_dice_drop or 0.0)
            self.tried.append(
                {"channels": candidate.channels, "parameter_bytes": candidate.parameter_bytes, "drop": round(drop, 4), "within": within}
            )
            self.reporter.message(f"{candidate.parameter_bytes:,} bytes: {drop:+.2f} points of validation Dice lost after training")
            if not within and budget >= high:
                return None
            # Whatever budget lies between a plan's bytes and the one it was found for comes to the same plan.
            low, holds = (low, candidate.parameter_bytes) if within else (budget, holds)
            if holds is not None and holds <= low * _CLOSE_ENOUGH:
                break
        return holds

    def _predicted(self, network: _Network, low: int, high: int) -> int:
        """The smallest budget whose layers, quantized one at a time and not trained, lose no more than allowed when added up."""
        drop, driver = (self.settings.max_dice_drop or 0.0) / 100.0, self._drivers()[0]
        while high > low * _CLOSE_ENOUGH:
            middle = round(math.sqrt(low * high))
            bits = searched_weights(network.space, network.costs(driver), middle).bits
            low, high = (low, middle) if network.sensitivity.dice_drop(bits) <= drop else (middle, high)
        return high

    # --- plans ------------------------------------------------------------------------------------------------------

    def _drivers(self) -> tuple[str, ...]:
        return ("measured", "hessian") if self.settings.sensitivity == "both" else (self.settings.sensitivity,)

    def _candidates(self, network: _Network, budget: int) -> list[Candidate]:
        """Searched plans, and uniform ones of no more bytes; a plan two of them come to is trained once, under the uniform name."""
        activation_budget = self.settings.activation_budget
        uniform = uniform_candidates(network.space, budget, activation_budget)
        known = {each.choice.digest: each for each in uniform}
        searched: dict[str, Candidate] = {}
        for name in self._drivers():
            candidate = network.candidate(budget, activation_budget, name)
            if candidate.choice.digest in known:
                self.reporter.message(f"the {name} search comes to a uniform plan itself: {known[candidate.choice.digest].label}")
            else:
                searched.setdefault(candidate.choice.digest, candidate)
        return [*searched.values(), *uniform]

    def _train(self, space: SearchSpace, candidate: Candidate) -> CandidateResult:
        config = space.configured(candidate.choice)
        runs = [self.trainings.quantized(config, candidate.slug, seed) for seed in self.settings.seeds]
        return CandidateResult(candidate, tuple(run.path for run in runs), tuple(noted_validation(run) for run in runs))

    # --- the end ----------------------------------------------------------------------------------------------------

    def _score(
        self,
        networks: Mapping[int, _Network],
        floats: Mapping[int, tuple[float, ...]],
        trained: list[CandidateResult],
        budgets: Mapping[int, int],
    ) -> SearchResult:
        """Choose on validation, then look at the test part, once."""
        uniform = max((each for each in trained if not each.candidate.searched), key=lambda each: each.mean_validation)
        searched = max((each for each in trained if each.candidate.searched), key=lambda each: each.mean_validation, default=None)
        best = choose(trained, max(statistics.fmean(scores) for scores in floats.values()), self.settings.max_dice_drop)
        self.reporter.message(f"chosen on validation: {best.candidate.label}, {best.candidate.channels} channels; scoring the test part")
        scored = {id(each): self._scored(each) for each in trained}
        comparisons = {}
        if searched is not None:
            mine = scored[id(searched)]
            for each in trained:
                if not each.candidate.searched:
                    comparisons[each.candidate.slug, each.candidate.channels] = compare(mine.evaluations, scored[id(each)].evaluations)
        twins = {each.candidate.channels: each for each in scored.values()}
        float_results = [FloatResult(width, floats[width], twins[width].evaluations) for width in budgets]
        return SearchResult(
            search=self.search,
            budgets=dict(budgets),
            candidates=tuple(scored.values()),
            floats=tuple(float_results),
            best=scored[id(best)],
            best_uniform=scored[id(uniform)],
            best_searched=None if searched is None else scored[id(searched)],
            comparisons=comparisons,
            sensitivities={width: network.sensitivity for width, network in networks.items()},
            plans={width: networks[width].space for width in budgets},
            tried=tuple(self.tried),
            trainings=self.trainings.made,
        )

    def _scored(self, trained: CandidateResult) -> CandidateResult:
        runs = []
        for folder in trained.runs:
            if self.stop_requested():
                raise InterruptedRunError("stopped before scoring; every training is kept, --resume scores it")
            runs.append(self.trainings.score(RunFolder.open(folder)))
        return replace(trained, evaluations=tuple(run.evaluation for run in runs))

    def _config(self, networks: Mapping[int, _Network], result: CandidateResult) -> Config:
        return networks[result.candidate.channels].space.configured(result.candidate.choice)


def choose(trained: Sequence[CandidateResult], float_dice: float, max_dice_drop: float | None) -> CandidateResult:
    """The plan with the best validation Dice, a uniform one where they are equal; for a given loss, the smallest that loses no more.

    Args:
        trained: plans.
        float_dice: validation Dice of the best float network, 0 to 1.
        max_dice_drop: points that may be lost, None where the budget is given.
    """
    holding = [] if max_dice_drop is None else [each for each in trained if 100.0 * (float_dice - each.mean_validation) <= max_dice_drop]
    if holding:
        return min(holding, key=lambda each: (each.candidate.parameter_bytes, -each.mean_validation, each.candidate.searched))
    return max(trained, key=lambda each: (each.mean_validation, not each.candidate.searched))


def _space(search: ResolvedSearch, width: int) -> SearchSpace:
    """The open layers of a width, over weights nobody has trained."""
    config = with_channels(search.config, width)
    session = TrainingSession(config, search.dataset, search.split, RunFolder(Path(), {}), SilentReporter(), lambda: False)
    graph, _ = plan_network(config, session.network, session.inputs)
    case = session.prepared("validation")[0]
    size = only_size(config) or shown_at_once(case.window.shape, configured_size_multiple(config), session.dimensions)
    parameters = sum(parameter.numel() for parameter in session.network.parameters())
    settings, shape = search.settings, (1, session.inputs, *size)
    choices = settings.weight_choices, settings.activation_choices
    space = SearchSpace(config, graph, session.method, *choices, search.edges_open, parameters, shape)
    check_choices(space)
    return space


def _affordable(search: ResolvedSearch, spaces: dict[int, SearchSpace], reporter: Reporter) -> dict[int, SearchSpace]:
    """The widths whose smallest plan fits both budgets; refused where there is none."""
    settings, kept, refused = search.settings, {}, []
    for width, space in spaces.items():
        over = []
        if settings.budget is not None and (smallest := smallest_bytes(space)) > settings.budget:
            over.append(f"--budget {settings.budget:,} bytes is below the smallest plan, {smallest:,} bytes")
        if settings.activation_budget is not None and (least := smallest_peak(space)) > settings.activation_budget:
            over.append(f"--activation-budget {settings.activation_budget:,} bytes is below the smallest peak, {least:,} bytes")
        refused += [f"{width} channels: {text}" for text in over]
        if not over:
            kept[width] = space
    if not kept:
        raise UsageError(*refused, "give a larger budget, fewer channels (--widths) or narrower choices (--wbits-choices, --abits-choices)")
    for text in refused:
        reporter.message(f"left out: {text}")
    return kept


def _given(search: ResolvedSearch, spaces: Mapping[int, SearchSpace]) -> dict[tuple[int, int], Path]:
    if search.source is None:
        return {}
    theirs = RunFolder.open(search.source).config
    key = (theirs.model.channels, theirs.train.seed)
    if key[0] not in spaces or key[1] not in search.settings.seeds:
        raise UsageError(
            f"--from {search.source}: its network has {key[0]} channels and seed {key[1]}, neither of which is searched; "
            f"give --widths and --seeds that hold them"
        )
    return {key: search.source.resolve()}
