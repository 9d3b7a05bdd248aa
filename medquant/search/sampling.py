"""Samplers and pruners of Optuna, taught again from the ledger when a sweep goes on.

Optuna's storage is its memory: the ledger is what lasts. Every question is asked with a seed of its own, made of the sweep's and the
question's number, so that what is asked next does not depend on whether the process was started anew in between.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from medquant.config.sweep import Prune, Range, Sample
from medquant.errors import CheckpointError
from medquant.search.trials import Outcome

optuna.logging.set_verbosity(optuna.logging.ERROR)

_NEXT_QUESTION, _NEXT_SHARD = 1_000_003, 7_919


class Study:
    """What a sampler, a pruner or both have been asked and told.

    Args:
        name: of the sweep and the group; hyperband deals its brackets by it.
        sample: the sampler, None where trials are listed and only pruned.
        prune: the pruner, None where no trial is ended early.
        shard: number of the shard, from 0: each asks with seeds of its own.
    """

    def __init__(self, name: str, sample: Sample | None, prune: Prune | None, shard: int = 0) -> None:
        self._sample, self._shard = sample, shard
        two_goals = sample is not None and sample.minimise is not None
        directions = [StudyDirection.MAXIMIZE, *([StudyDirection.MINIMIZE] if two_goals else [])]
        self._space = {} if sample is None else {key: _distribution(allowed) for key, allowed in sample.space.items()}
        self._study = optuna.create_study(study_name=name, directions=directions, pruner=_pruner(prune), sampler=self._sampler(0))
        self._trials: dict[int, optuna.Trial] = {}
        self._reported: dict[int, set[int]] = {}
        self.asked = 0

    def ask(self, known: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """The next question's number, and the parameters that answer it.

        Args:
            known: what the answer was, where it is in the ledger already.
        """
        is_qmc = self._sample is not None and self._sample.sampler == "qmc"
        if known is not None and self._space and not is_qmc:
            self._study.enqueue_trial({key: _to_optuna(self._space[key], value) for key, value in known.items()})
        if not is_qmc:
            self._study.sampler = self._sampler(self.asked)
        trial = self._study.ask(self._space)
        self._trials[trial.number] = trial
        self.asked += 1
        parameters = {key: _from_optuna(self._space[key], value) for key, value in trial.params.items()}
        if is_qmc and known is not None and parameters != known:
            # Points of one sequence: asked in the same order they are the same, and there is no other way to say where it stands.
            raise CheckpointError("the ledger's quasi-random points are of another version of Optuna; install that, or give a new --out")
        return trial.number, parameters

    def watch(self, number: int, epoch: int, value: float) -> bool:
        """Take in a validation Dice; whether the trial is to be ended."""
        trial = self._trials[number]
        trial.report(value, epoch)
        self._reported.setdefault(number, set()).add(epoch)
        return trial.should_prune()

    def tell(self, number: int, outcome: Outcome) -> None:
        """Take in what came of a trial."""
        trial = self._trials.pop(number)
        if len(self._study.directions) == 1:
            for epoch, value in outcome.document.get("curve", []):
                if value is not None and epoch not in self._reported.get(number, ()):
                    trial.report(value, int(epoch))
        self._reported.pop(number, None)
        values = self._values(outcome)
        if outcome.status == "pruned":
            self._study.tell(trial, state=TrialState.PRUNED)
        elif outcome.status == "finished" and values is not None:
            self._study.tell(trial, values)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def _values(self, outcome: Outcome) -> list[float] | None:
        document = outcome.document
        found = [document.get("validation_dice")]
        if self._sample is not None and self._sample.minimise is not None:
            found.append(document.get("memory", {}).get(self._sample.minimise))
        return None if any(value is None for value in found) else [float(value) for value in found if value is not None]

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        if self._sample is None:
            return optuna.samplers.RandomSampler(seed=0)
        seed = (self._sample.seed + self._shard * _NEXT_SHARD + number * _NEXT_QUESTION) % 2**32
        match self._sample.sampler:
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
            case "qmc":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    return optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
            case "nsga2":
                return optuna.samplers.NSGAIISampler(seed=seed)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case _:
                return optuna.samplers.TPESampler(seed=seed)


def _pruner(prune: Prune | None) -> optuna.pruners.BasePruner:
    if prune is None:
        return optuna.pruners.NopPruner()
    least = max(1, prune.warmup_epochs)
    match prune.pruner:
        case "halving":
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=least)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=least)
        case _:
            return optuna.pruners.MedianPruner(prune.warmup_trials, prune.warmup_epochs, prune.interval)


def _distribution(allowed: Range) -> BaseDistribution:
    if allowed.choice is not None:
        # Optuna takes single values alone; as text, a list is one as well.
        return CategoricalDistribution([json.dumps(value, sort_keys=True) for value in allowed.choice])
    low, high, step = allowed.low or 0, allowed.high or 0, allowed.step
    if allowed.whole:
        return IntDistribution(int(low), int(high), log=allowed.log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=allowed.log, step=None if step is None else float(step))


def _from_optuna(distribution: BaseDistribution, value: Any) -> Any:
    return json.loads(value) if isinstance(distribution, CategoricalDistribution) else value


def _to_optuna(distribution: BaseDistribution, value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(distribution, CategoricalDistribution) else value
