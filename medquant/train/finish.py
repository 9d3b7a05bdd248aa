"""What follows training: the integer program checked against the simulation, the model file, the scores, the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata

import numpy as np
from torch import nn

import medquant
from medquant.config.schema import Config
from medquant.data.patches import whole_slices
from medquant.data.volume import Case
from medquant.deploy.agreement import Agreement, check_agreement
from medquant.deploy.metadata import ModelMetadata
from medquant.deploy.packed import load_model as load_packed
from medquant.deploy.packed import save_model
from medquant.errors import CheckpointError, EngineMismatchError, InputError, InterruptedRunError, UsageError
from medquant.evaluate.evaluation import SCHEMA as EVAL_SCHEMA
from medquant.evaluate.evaluation import Evaluation, baseline_document, evaluate_cases, scores_document, select_cases
from medquant.evaluate.intervals import summarise
from medquant.evaluate.ledger import Ledger, weigh_plan, weigh_program
from medquant.evaluate.predictors import FloatPredictor, MaskPredictor, ProgramPredictor
from medquant.evaluate.process_memory import measure_process_peak
from medquant.quant.lower import lower
from medquant.quant.network import QuantNetwork
from medquant.quant.program import IntegerProgram
from medquant.train.checkpoint import has_checkpoint, load_checkpoint
from medquant.train.pictures import draw_pictures
from medquant.train.run_folder import finished_now, write_json
from medquant.train.session import TrainingSession, outputs_for, plan_network
from medquant.train.state import load_model

INTENDED_USE = "Research. Not a medical device; not validated for diagnosis or treatment."
_CHECKED_SLICES = 4


@dataclass(frozen=True)
class Finished:
    """What a run came to.

    Args:
        document: the content of ``eval.json``.
        evaluation: scores and masks of the network itself.
        twin: the same for the float twin, None where there is none.
    """

    document: Mapping[str, object]
    evaluation: Evaluation
    twin: Evaluation | None


def finish(session: TrainingSession) -> Finished:
    """Export, check, score and draw a trained run; may be repeated, with the same result.

    Raises:
        EngineMismatchError: the simulation and the integer program differ in a single value.
        CheckpointError: a checkpoint is missing or the disk is full.
    """
    run = session.run_folder
    agreement = _export(session) if session.plan.is_integer else None
    finished = score_session(session, agreement)
    write_json(run.eval, finished.document)
    cases = select_cases(session.dataset, session.split.parts()[session.config.eval.split])
    try:
        draw_pictures(session, cases, finished.evaluation, finished.twin, finished.document)
    except (OSError, UsageError) as error:
        raise CheckpointError(f"{run.pictures}: not drawn ({error}); free some space and resume") from error
    run.note(status="finished", finished=finished_now(), is_float=session.plan.is_float)
    run.note_outputs()
    return finished


def score_session(session: TrainingSession, agreement: Agreement | None = None) -> Finished:
    """Score the network of a trained run, and its twin, on the part and with the engine the configuration names; writes nothing."""
    config, dataset = session.config, session.dataset
    cases = select_cases(dataset, session.split.parts()[config.eval.split])
    predictor: MaskPredictor
    if session.plan.is_integer:
        # Scored is the file that leaves the run, not the network in memory.
        predictor = ProgramPredictor(load_packed(session.run_folder.model).program, session.size_multiple, config.eval.engine)
    else:
        predictor = FloatPredictor(_trained_float(session), session.size_multiple)
    session.reporter.message(f"scoring {len(cases)} cases of the {config.eval.split} part")
    evaluation = evaluate_cases(cases, dataset.info, predictor, session.normalisation, lambda case: _heed_stop(session))
    twin = _evaluate_twin(session, cases)
    return Finished(_document(session, cases, evaluation, twin, agreement), evaluation, twin)


def _export(session: TrainingSession) -> Agreement:
    # The check runs on the processor: a GPU's float32 convolutions may use algorithms that are not exact.
    network = _trained(session).cpu()
    program = lower(network)
    agreement = _compare(session, network, program)
    save_model(session.run_folder.model, program, _metadata(session))
    return agreement


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
    """Simulation against the program on validation slices; a difference ends the run."""
    cases = select_cases(session.dataset, session.split.validation)
    slices = np.concatenate([whole_slices(case, session.normalisation)[0].numpy() for case in cases[:_CHECKED_SLICES]])[:_CHECKED_SLICES]
    rows, columns = (length - length % session.size_multiple for length in slices.shape[2:])
    agreement = check_agreement(network, program, slices[:, :, :rows, :columns])
    if agreement.differing:
        raise EngineMismatchError(
            f"{session.run_folder.path}: simulation and integer program differ in {agreement.differing} of {agreement.checked} values; "
            "no model file was written. This is a fault of medquant: report it with run.json"
        )
    session.reporter.message(f"simulation and integer program agree in all {agreement.checked} values checked")
    return agreement


def _evaluate_twin(session: TrainingSession, cases: Sequence[Case]) -> Evaluation | None:
    if session.plan.is_float or not has_checkpoint(session.run_folder.twin):
        return None
    network = session.network
    load_model(load_checkpoint(session.run_folder.twin), network)
    predictor = FloatPredictor(network, session.size_multiple)
    return evaluate_cases(cases, session.dataset.info, predictor, session.normalisation, lambda case: _heed_stop(session))


def _heed_stop(session: TrainingSession) -> None:
    if session.stop_requested():
        raise InterruptedRunError("stopped while scoring; training is complete, --resume scores it")


def _metadata(session: TrainingSession) -> ModelMetadata:
    info = session.dataset.info
    stored = {
        "normalisation": session.normalisation.to_json(),
        "size_multiple": session.size_multiple,
        "classes": dict(info.classes),
        "scored": info.scored,
        "positive_class": max(info.classes) if outputs_for(len(info.classes)) == 1 else None,
        "float_parameters": sum(parameter.numel() for parameter in session.network.parameters()),
        "dataset": info.name,
        "data_sha256": session.dataset.content_sha256,
        "split": session.split.to_json(),
        "config": _shareable(session.config),
        "created_with": {"medquant": medquant.__version__, "torch": metadata.version("torch")},
        "intended_use": INTENDED_USE,
    }
    return ModelMetadata.model_validate(stored)


def _shareable(config: Config) -> dict[str, object]:
    """The configuration without the places of this machine: a model file is passed on."""
    dumped: dict[str, dict[str, object]] = config.model_dump(mode="json")
    dumped["data"]["path"] = None
    dumped["train"]["twin_from"] = None
    return dict(dumped)


def weigh_session(session: TrainingSession, cases: Sequence[Case]) -> Ledger:
    """The ledger of a finished run for one slice of its first case."""
    rows, columns, _ = cases[0].image.shape
    shape = (1, 1, rows + -rows % session.size_multiple, columns + -columns % session.size_multiple)
    run, wbits = session.run_folder, session.config.quant.wbits
    parameters = sum(parameter.numel() for parameter in session.network.parameters())
    if session.plan.is_integer:
        ledger = weigh_program(load_packed(run.model).program, parameters, wbits, shape)
        peak = _process_peak(session, shape)
        return replace(ledger, model_file_bytes=run.model.stat().st_size, process_peak_bytes=peak)
    graph, plan = plan_network(session.config, session.network)
    files = sum(file.stat().st_size for file in run.best.glob("*.safetensors"))
    return replace(weigh_plan(graph, plan, parameters, wbits, shape), model_file_bytes=files)


def _process_peak(session: TrainingSession, shape: tuple[int, ...]) -> int | None:
    """The measured peak, None where the measurement failed: that must not cost the scores."""
    try:
        return measure_process_peak(session.run_folder.model, shape, session.config.eval.engine)
    except InputError as error:
        session.reporter.message(f"process memory not measured: {error}")
        return None


def _document(
    session: TrainingSession, cases: Sequence[Case], evaluation: Evaluation, twin: Evaluation | None, agreement: Agreement | None
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
        "bits": {"weights": config.quant.wbits, "activations": config.quant.abits, "method": config.quant.method},
        **scores_document(evaluation, dataset.info),
        "baseline": baseline_document(cases, dataset.info),
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
