"""What follows training: the integer program checked against the simulation, the model file, the scores, the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from medquant.data.prepared import PreparedCase
from medquant.data.volume import FloatArray
from medquant.deploy.agreement import Agreement, check_agreement
from medquant.deploy.packed import load_model as load_packed
from medquant.deploy.packed import save_model
from medquant.errors import CheckpointError, EngineMismatchError, InputError, InterruptedRunError, UsageError
from medquant.evaluate.evaluation import SCHEMA as EVAL_SCHEMA
from medquant.evaluate.evaluation import Evaluation, baseline_document, evaluate_cases, scores_document
from medquant.evaluate.intervals import summarise
from medquant.evaluate.ledger import Ledger, weigh_plan, weigh_program
from medquant.evaluate.process_memory import measure_process_peak
from medquant.evaluate.threshold_search import search_thresholds
from medquant.predict.blocks import shown_at_once
from medquant.predict.float_predictor import FloatPredictor
from medquant.predict.predictors import MaskPredictor, ProgramPredictor
from medquant.quant.lower import lower
from medquant.quant.network import QuantNetwork
from medquant.quant.program import IntegerProgram
from medquant.train.building import configured_outputs, plan_network
from medquant.train.checkpoint import has_checkpoint, load_checkpoint
from medquant.train.model_card import model_metadata, region_json, scored_metrics
from medquant.train.pictures import draw_pictures, pictured
from medquant.train.run_folder import finished_now, write_json
from medquant.train.session import TrainingSession
from medquant.train.state import load_model

_CHECKED_SLICES = 4
_CHECKED_BLOCK = 64


@dataclass(frozen=True)
class Finished:
    """What a run came to.

    Args:
        document: the content of ``eval.json``.
        evaluation: scores and masks of the network itself.
        twin: the same for the float twin, None where there is none.
    """

    document: Mapping[str, Any]
    evaluation: Evaluation
    twin: Evaluation | None


def finish(session: TrainingSession) -> Finished:
    """Export, check, score and draw a trained run; may be repeated, with the same result.

    Raises:
        EngineMismatchError: the simulation and the integer program differ in a single value.
        CheckpointError: a checkpoint is missing or the disk is full.
    """
    run = session.run_folder
    agreement = None
    if session.is_integer:
        program, agreement = _export(session)
        finished = score_session(session, agreement)
        # The same network once more, now with its scores.
        metrics = scored_metrics(finished.evaluation, session.config.eval.split, session.dataset.info.scored)
        _save(session, program, metrics)
        memory = {**finished.document["memory"], "model_file_bytes": run.model.stat().st_size}
        finished = replace(finished, document={**finished.document, "memory": memory})
    else:
        finished = score_session(session)
    write_json(run.eval, finished.document)
    cases = scored_cases(session)
    try:
        if not session.only_scores:
            draw_pictures(session, cases, finished.evaluation, finished.twin, finished.document)
    except (OSError, UsageError) as error:
        raise CheckpointError(f"{run.pictures}: not drawn ({error}); free some space and resume") from error
    run.note(status="finished", finished=finished_now(), is_float=session.plan.is_float)
    run.note_outputs()
    return finished


def score_session(session: TrainingSession, agreement: Agreement | None = None) -> Finished:
    """Score the network of a trained run, and its twin, on the part and with the engine the configuration names; writes nothing."""
    config = session.config
    cases = scored_cases(session)
    predictor: MaskPredictor
    if session.is_integer:
        # Scored is the file that leaves the run, not the network in memory.
        program = load_packed(session.run_folder.model).program
        predictor = ProgramPredictor(program, session.size_multiple, config.eval.engine, session.reporter.message)
        # With it the weights go, where the engine has its own.
        del program
    else:
        predictor = session.float_predictor(_trained_float(session))
    session.reporter.message(f"scoring {len(cases)} cases of the {config.eval.split} part")
    evaluation = _evaluate(session, cases, predictor)
    _say_what_was_not_found(session, evaluation)
    searched = {"own": _search(session, cases, predictor)}
    twin = None
    if (float_predictor := _twin_predictor(session)) is not None:
        twin = _evaluate(session, cases, float_predictor)
        searched["float_twin"] = _search(session, cases, float_predictor)
    document = _document(session, cases, evaluation, twin, agreement)
    if searched["own"] is not None:
        document["threshold_search"] = searched
    return Finished(document, evaluation, twin)


def _say_what_was_not_found(session: TrainingSession, evaluation: Evaluation) -> None:
    """A network that calls everything background must not pass for one that merely scores badly."""
    for name in session.dataset.info.scored:
        found = [score.dice[name] for score in evaluation.scores]
        if found and not any(found):
            session.reporter.message(
                f"not a voxel of {name} was found in any case: the network was trained too little, or on too few cases"
            )


def _search(session: TrainingSession, cases: Sequence[PreparedCase], predictor: MaskPredictor) -> dict[str, object] | None:
    # Thresholds are chosen on slices that are not scored; of the validation part itself nothing is searched.
    if "v_rand" not in session.dataset.info.official_score or session.config.eval.split == "validation":
        return None
    if configured_outputs(session.config, len(session.dataset.info.classes)) != 1:
        return None  # brought along with an output for each class: the larger decides, and there is no threshold to choose
    return search_thresholds(session.prepared("validation"), cases, session.dataset.info, predictor)


def _export(session: TrainingSession) -> tuple[IntegerProgram, Agreement]:
    # The check runs on the processor: a GPU's float32 convolutions may use algorithms that are not exact.
    network = _trained(session).cpu()
    program = lower(network)
    agreement = _compare(session, network, program)
    _save(session, program, {})
    return program, agreement


def _save(session: TrainingSession, program: IntegerProgram, metrics: Mapping[str, object]) -> None:
    coarse = session.run_folder.coarse / session.run_folder.model.name if session.config.data.region == "coarse" else None
    save_model(session.run_folder.model, program, model_metadata(session, metrics), coarse)


def _trained(session: TrainingSession) -> QuantNetwork:
    network = session.quantized_network()
    load_model(load_checkpoint(session.run_folder.best), network)
    network.eval()
    return network


def _trained_float(session: TrainingSession) -> nn.Module:
    """The network of a run that is no integer program: float altogether, or with some layers left float."""
    if not session.plan.is_float:
        return _trained(session)
    load_model(load_checkpoint(session.run_folder.best), session.network)
    return session.network


def _compare(session: TrainingSession, network: QuantNetwork, program: IntegerProgram) -> Agreement:
    """Simulation against the program on slices of the validation (else the training) part; a difference ends the run."""
    cases = session.prepared("validation" if session.split.validation else "train")
    slices = _some_slices(cases) if session.dimensions == 2 else _some_block(cases[0])
    padding = [(0, 0), (0, 0), *((0, -length % session.size_multiple) for length in slices.shape[2:])]
    agreement = check_agreement(network, program, np.pad(slices, padding, mode="edge"))
    if agreement.differing:
        raise EngineMismatchError(
            f"{session.run_folder.path}: simulation and integer program differ in {agreement.differing} of {agreement.checked} values; "
            "no model file was written. This is a fault of medquant: report it with run.json"
        )
    session.reporter.message(f"simulation and integer program agree in all {agreement.checked} values checked")
    return agreement


def _some_slices(cases: Sequence[PreparedCase]) -> FloatArray:
    """Up to four slices (N, C, I, J), of one case where it has so many, of the first cases of its size otherwise."""
    first = cases[0]
    alike = [case for case in cases if case.window.shape[:2] == first.window.shape[:2]]
    chosen = [(case, k) for case in alike for k in range(case.slices)][:_CHECKED_SLICES]
    return np.stack([case.image(k) for case, k in chosen])


def _some_block(case: PreparedCase) -> FloatArray:
    """The middle of a case (1, C, I, J, K), up to 64 voxels a side."""
    starts = [max(0, (length - _CHECKED_BLOCK) // 2) for length in case.window.shape]
    i, j, k = (range(start, min(start + _CHECKED_BLOCK, length)) for start, length in zip(starts, case.window.shape, strict=True))
    return np.stack([case.image(each)[:, i.start : i.stop, j.start : j.stop] for each in k], axis=3)[None]


def _twin_predictor(session: TrainingSession) -> FloatPredictor | None:
    if session.plan.is_float or not has_checkpoint(session.run_folder.twin):
        return None
    load_model(load_checkpoint(session.run_folder.twin), session.network)
    return session.float_predictor(session.network)


def _evaluate(session: TrainingSession, cases: Sequence[PreparedCase], predictor: MaskPredictor) -> Evaluation:
    # Masks are kept for the pictures alone: those of a whole test set would not fit into memory.
    kept = {case.id for case in pictured(cases)}
    return evaluate_cases(cases, session.dataset.info, predictor, lambda case: _heed_stop(session), kept)


def scored_cases(session: TrainingSession) -> list[PreparedCase]:
    """The cases of the part that is scored.

    Raises:
        UsageError: the split leaves none for it.
    """
    part = session.config.eval.split
    cases = session.prepared(part)
    if not cases:
        raise UsageError(f"the {part} part of this split is empty ({session.split.rule}); score another part")
    return cases


def _heed_stop(session: TrainingSession) -> None:
    if session.stop_requested():
        raise InterruptedRunError("stopped while scoring; training is complete, --resume scores it")


def weigh_session(session: TrainingSession, cases: Sequence[PreparedCase]) -> Ledger:
    """The ledger of a finished run for one slice, or one block, of its first case."""
    size = session.only_size or shown_at_once(cases[0].window.shape, session.size_multiple, session.dimensions)
    shape = (1, session.inputs, *size)
    run, wbits = session.run_folder, session.config.quant.wbits
    parameters = sum(parameter.numel() for parameter in session.network.parameters())
    if session.is_integer:
        packed = load_packed(run.model)
        ledger = weigh_program(packed.program, parameters, wbits, shape, None if packed.coarse is None else packed.coarse.program)
        peak = None if session.only_scores else _process_peak(session, shape)
        return replace(ledger, model_file_bytes=run.model.stat().st_size, process_peak_bytes=peak)
    graph, plan = plan_network(session.config, session.network, session.inputs)
    ledger = weigh_plan(graph, session.method.stored(plan), parameters, wbits, shape)
    if not session.plan.is_float:
        # The checkpoint of a simulation holds latent float weights: it is not what the network would be shipped as.
        return ledger
    return replace(ledger, model_file_bytes=sum(file.stat().st_size for file in run.best.glob("*.safetensors")))


def _process_peak(session: TrainingSession, shape: tuple[int, ...]) -> int | None:
    """The measured peak, None where the measurement failed: that must not cost the scores."""
    try:
        return measure_process_peak(session.run_folder.model, shape, session.config.eval.engine)
    except InputError as error:
        session.reporter.message(f"process memory not measured: {error}")
        return None


def _document(
    session: TrainingSession, cases: Sequence[PreparedCase], evaluation: Evaluation, twin: Evaluation | None, agreement: Agreement | None
) -> dict[str, object]:
    config, dataset = session.config, session.dataset
    document: dict[str, object] = {
        "schema": EVAL_SCHEMA,
        "run": str(session.run_folder.path),
        "data": {"name": dataset.info.name, "recognised": dataset.recognised, "content_sha256": dataset.content_sha256},
        "split": {"part": config.eval.split, "rule": session.split.rule, "cases": [case.id for case in cases]},
        "network": {
            **config.model.model_dump(mode="json"),
            "edge_bits": config.quant.edge_bits,
            "layer_bits": list(config.quant.layer_bits),
        },
        "seed": config.train.seed,
        "preparation": {**session.preparation.to_json(), "region": region_json(config)},
        "bits": config.quant.record(),
        **scores_document(evaluation, dataset.info),
        "baseline": baseline_document([case.case for case in cases], dataset.info),
        "memory": weigh_session(session, cases).to_json(),
        "float_twin": None if twin is None else scores_document(twin, dataset.info),
        "agreement": None if agreement is None else {"checked": agreement.checked, "differing": agreement.differing},
    }
    if twin is not None:
        document["dice_minus_twin"] = {
            name: summarise([a.dice[name] - b.dice[name] for a, b in zip(evaluation.scores, twin.scores, strict=True)]).mean
            for name in dataset.info.scored
        }
    return document
