"""Score a finished run or a model file again: on any part, with any engine, on its own data or on other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medquant.data.opening import open_dataset
from medquant.data.reading import ReadOptions
from medquant.data.split import Split
from medquant.data.stored import ArrayCache
from medquant.data.volume import Case, Dataset
from medquant.deploy.engines import check_engine
from medquant.deploy.packed import PackedModel, load_model
from medquant.errors import InputError, UsageError
from medquant.evaluate.evaluation import SCHEMA, baseline_document, evaluate_cases, scores_document, select_cases
from medquant.evaluate.ledger import weigh_program
from medquant.evaluate.process_memory import measure_process_peak
from medquant.predict.blocks import shown_at_once
from medquant.predict.model_case import open_model
from medquant.train.reporting import Reporter
from medquant.train.run_folder import RUNS, RunFolder, newest_run, stored_config

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class EvalRequest:
    """What was asked for.

    Args:
        target: run folder or model file, None for the newest run below the current folder.
        data: dataset folder, None for the data of the run.
        part: part of the split to score.
        engine: engine name or ``auto``.
    """

    target: Path | None = None
    data: Path | None = None
    part: str = "test"
    engine: str = "auto"


def rescore(request: EvalRequest, reporter: Reporter) -> dict[str, object]:
    """The evaluation document of a run or a model file.

    Raises:
        UsageError: nothing to score, or an unknown part or engine.
        CheckpointError: the run or model file is damaged, or the run was made with other data.
        InputError: the data cannot be read or hold no labels.
    """
    if request.part not in PARTS:
        raise UsageError(f"--split {request.part!r}: expected {', '.join(PARTS)}")
    check_engine(request.engine)
    target = request.target or newest_run(RUNS) or newest_run(Path())
    if target is None:
        raise UsageError("nothing to score: no run below this folder; train first, or name a run folder or a model file")
    if not target.exists():
        raise UsageError(f"{target}: no such run folder or model file")
    if target.is_dir():
        return _rescore_run(target, request, reporter)
    return _rescore_model(target, request, reporter)


def _rescore_run(folder: Path, request: EvalRequest, reporter: Reporter) -> dict[str, object]:
    # A run is scored by its session, which needs torch; a model file is scored without.
    from medquant.train.finish import score_session
    from medquant.train.start import open_session

    run = RunFolder.open(folder)
    if run.document.get("status") != "finished":
        raise UsageError(f"{folder}: this run is not finished; end it first with medquant train --resume --out {folder}")
    session = open_session(run, None if request.data is None else str(request.data), reporter, lambda: False)
    chosen = session.config.eval.model_copy(update={"split": request.part, "engine": request.engine})
    session.config = session.config.model_copy(update={"eval": chosen})
    return dict(score_session(session).document)


def _rescore_model(path: Path, request: EvalRequest, reporter: Reporter) -> dict[str, object]:
    packed = load_model(path)
    dataset = _model_data(packed, path, request)
    reporter.message(dataset.recognised)
    part, cases = _model_cases(packed, dataset, request.part, reporter)
    meta = packed.metadata
    if len(dataset.info.channels) != len(meta.channels):
        raise InputError(f"{path}: takes {len(meta.channels)} channels, the data have {len(dataset.info.channels)}; give data with as many")
    model = open_model(packed, request.engine, reporter.message)
    packed, predictor = model.packed, model.predictor
    if dict(dataset.info.classes) != dict(meta.classes):
        raise InputError(f"{path}: finds {dict(meta.classes)}, the data hold {dict(dataset.info.classes)}; give data with these classes")
    prepared = [model.prepare(case, ArrayCache(ArrayCache.default_folder())) for case in cases]
    evaluation = evaluate_cases(prepared, dataset.info, predictor, keep_masks=())
    shape = (1, len(meta.channels), *shown_at_once(prepared[0].window.shape, meta.size_multiple, predictor.dimensions))
    bits = stored_config(meta.config, path).quant
    ledger = replace(
        weigh_program(packed.program, meta.float_parameters, bits.wbits, shape, packed.coarse.program if packed.coarse else None),
        model_file_bytes=packed.size_bytes,
        process_peak_bytes=measure_process_peak(path, shape, request.engine),
    )
    return {
        "schema": SCHEMA,
        "model": str(path),
        "data": {"name": dataset.info.name, "recognised": dataset.recognised, "content_sha256": dataset.content_sha256},
        "split": {"part": part, "cases": [case.id for case in cases]},
        "bits": bits.record(),
        **scores_document(evaluation, dataset.info),
        "baseline": baseline_document(cases, dataset.info),
        "memory": ledger.to_json(),
        "float_twin": None,
    }


def _model_data(packed: PackedModel, path: Path, request: EvalRequest) -> Dataset:
    stored = stored_config(packed.metadata.config, path).data
    if request.data is not None:
        # Raters joined by another rule would make other masks: the model's own data would count as other data, and the cases
        # it was trained on would be scored among the rest.
        return open_dataset(request.data, options=ReadOptions(stored.raters, ArrayCache(ArrayCache.default_folder())))
    if packed.metadata.dataset == "phantom":
        return open_dataset(None, phantom_seed=stored.phantom_seed)
    raise UsageError(f"this model was trained on {packed.metadata.dataset}; say where the data to score are with --data")


def _model_cases(packed: PackedModel, dataset: Dataset, part: str, reporter: Reporter) -> tuple[str, Sequence[Case]]:
    """The cases of the asked part where the data are those of the training; otherwise all labelled ones."""
    if dataset.content_sha256 == packed.metadata.data_sha256:
        return part, select_cases(dataset, Split.from_json(packed.metadata.split).parts()[part])
    labelled = [case for case in dataset.cases if case.mask is not None]
    if not labelled:
        raise InputError(f"{dataset.info.name}: no labelled case; there is nothing to score against")
    reporter.message("other data than the model was trained on: every labelled case is scored")
    return "all labelled cases", labelled
