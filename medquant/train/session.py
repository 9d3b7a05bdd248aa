"""A whole training run: float warm start, float twin, quantized training. What comes after stands in finish.py.

The float twin and the quantized network both start from the end of the warm start and see the same samples at the same
learning rates, so their difference is what quantization costs, not what longer training brings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from medquant.config.schema import Config
from medquant.data.augment import Augmenter
from medquant.data.ct_window import foreground_window, is_ct
from medquant.data.normalise import Normalisation
from medquant.data.patches import PatchDataset
from medquant.data.prepared import Preparation, PreparedCase, prepare_cases
from medquant.data.prepared_grid import GridRule, choose_slice_axis
from medquant.data.split import Split
from medquant.data.volume import Dataset, Volume
from medquant.deploy.engines import check_engine
from medquant.deploy.packed import load_model as load_packed
from medquant.errors import ConfigError, InputError
from medquant.evaluate.evaluation import mean_dice, select_cases
from medquant.predict.float_predictor import Decision, FloatPredictor
from medquant.predict.predictors import ProgramPredictor
from medquant.predict.regions import CoarseRegion, RegionFinder, TruthCentredRegion, WholeRegion
from medquant.quant.batch_norm import reestimate_batch_norm
from medquant.quant.network import QuantNetwork
from medquant.train.batches import KILLED, EpochBatches, worker_was_killed
from medquant.train.building import (
    build_network,
    configured_cache,
    configured_method,
    configured_outputs,
    configured_size_multiple,
    only_size,
    plan_network,
)
from medquant.train.checkpoint import Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint
from medquant.train.config_check import check_trainable, configured_decision, warm_epochs
from medquant.train.distributed import ALONE, LOST, Group, connection_lost
from medquant.train.origins import stages_before
from medquant.train.precision import choose_device, use_bfloat16
from medquant.train.recorder import Recorder
from medquant.train.reporting import Reporter
from medquant.train.run_folder import RunFolder
from medquant.train.seeds import make_repeatable
from medquant.train.stage import StagePlan, StageRunner, Surroundings
from medquant.train.state import load_model, progress_of, weights_of

Network = TypeVar("Network", bound=nn.Module)

# Samples for calibration and batch norm come from epochs no training stage reaches.
_CALIBRATION_EPOCH = 2_000_000
_BATCH_NORM_EPOCH = 3_000_000


class TrainingSession:
    """Runs the stages of one run.

    Args:
        config: everything decided.
        dataset: the data, already checked against the run.
        split: its parts.
        run: the run folder, new or to be resumed.
        reporter: told of every event.
        stop_requested: asked after each step; True saves and ends the run.
        group: the processes that train together; the first one writes.
    """

    only_scores = False
    """Whether the scores are all that is wanted: then nothing is drawn, no process is measured, and TensorBoard gets nothing."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        split: Split,
        run: RunFolder,
        reporter: Reporter,
        stop_requested: Callable[[], bool],
        group: Group = ALONE,
    ) -> None:
        self.group = group
        self.config, self.dataset, self.split, self.run_folder, self.reporter = config, dataset, split, run, reporter
        self.stop_requested = stop_requested
        group.check_batch(config.data.batch_size)
        check_engine(config.eval.engine)  # a name that does not exist must be found out now, not after hours of training
        self.method = configured_method(config)
        if group.size > 1 and not self.method.shares_batches:
            raise ConfigError(f"quant.method: {self.method.name} trains in one process only, found {group.size}; start it without torchrun")
        # A resumed run takes the thread count it was started with: another one gives other bits.
        noted = run.document.get("threads")
        self.threads = make_repeatable(config.train.seed, config.train.threads or (noted if isinstance(noted, int) else None))
        self.device = choose_device(config.train.device, group)
        self.cache = configured_cache(config)
        self.preparation = Preparation(self._make_normalisation(), self._grid_rule())
        self.warm_epochs = warm_epochs(config)
        self.network = self._place(build_network(config, self.inputs, configured_outputs(config, len(dataset.info.classes))))
        self.size_multiple = configured_size_multiple(config)
        self.only_size = only_size(config)
        graph, self.plan = plan_network(config, self.network, self.inputs)
        QuantNetwork(graph, self.plan, self.method)  # bits that do not go together are refused now, not after the warm start
        check_trainable(config, self.plan.is_float, self.is_integer, len(dataset.info.classes))

    # --- preparation ----------------------------------------------------------------------------------------------

    @property
    def inputs(self) -> int:
        """Channels of an image."""
        return len(self.dataset.info.channels)

    @property
    def is_integer(self) -> bool:
        """Whether what is trained leaves as an exact integer program."""
        return self.plan.is_integer and self.method.exact

    @property
    def dimensions(self) -> int:
        """2 where the network takes slices, 3 where it takes volumes."""
        return self.config.model.dimensions

    def _make_normalisation(self) -> Normalisation:
        data = self.config.data
        if data.normalisation != "range":
            return Normalisation(data.normalisation)
        if data.window is not None:
            return Normalisation("range", *data.window)
        if is_ct(self.dataset.info):
            return Normalisation("range", *foreground_window(select_cases(self.dataset, self.split.train), self.cache))
        ends = [(float(array.min()), float(array.max())) for array in (volume.array for volume in self._training_images())]
        return Normalisation("range", min(low for low, _ in ends), max(high for _, high in ends))

    def _grid_rule(self) -> GridRule:
        data = self.config.data
        axis = choose_slice_axis(self._training_images()) if data.slice_axis == "auto" else data.slice_axis
        return GridRule(axis, data.spacing_mm)

    def _training_images(self) -> list[Volume]:
        return [volume for case in select_cases(self.dataset, self.split.train) for volume in case.channels]

    def prepared(self, part: str, for_training: bool = False) -> list[PreparedCase]:
        """The cases of a part on the network's grid, cut to their regions.

        Args:
            part: ``train``, ``validation`` or ``test``; an empty part gives an empty list.
            for_training: with each rater's mask, not the one that is scored.
        """
        ids = self.split.parts()[part]
        cases = select_cases(self.dataset, ids) if ids else []
        if not for_training:
            cases = [replace(case, raters=()) for case in cases]
        return [self.region.place(case) for case in prepare_cases(cases, self.preparation, self.cache)]

    @cached_property
    def region(self) -> RegionFinder:
        """What the network sees of a case.

        Raises:
            CheckpointError: the coarse network of the run is missing.
        """
        data = self.config.data
        if data.region == "coarse":
            file = self.run_folder.coarse / self.run_folder.model.name
            packed = load_packed(file)
            predictor = ProgramPredictor(packed.program, packed.metadata.size_multiple, notify=self.reporter.message)
            preparation = Preparation.from_json(packed.metadata.preparation)
            return CoarseRegion(predictor, preparation, data.region_margin_mm, data.patch_size, self.cache)
        return TruthCentredRegion(data.patch_size) if data.region == "paper_truth_centred" else WholeRegion()

    def float_predictor(self, network: nn.Module, decision: Decision | None = None) -> FloatPredictor:
        """Predicts with a network that torch runs: the float twin, or the simulation of a quantized one."""
        return FloatPredictor(network, self.size_multiple, self.dimensions, self.only_size, decision or self.decision)

    @property
    def decision(self) -> Decision:
        """How the output of a network that torch runs is decided."""
        return configured_decision(self.config)

    def _place(self, network: Network) -> Network:
        network = network.to(self.device)
        if self.config.train.channels_last and self.config.model.dimensions == 2:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def _patches(self) -> PatchDataset:
        data, train = self.config.data, self.config.train
        augmenter = Augmenter(data.augmentation, data.patch_size)
        cases = self.prepared("train", for_training=True)
        depth = data.patch_slices if self.dimensions == 3 else None
        return PatchDataset(cases, data.patch_size, augmenter, train.steps_per_epoch * data.batch_size, train.seed, depth)

    def training_batches(self) -> EpochBatches:
        """The batches of training by themselves, for what measures and trains nothing; whoever asks closes them."""
        return EpochBatches(self._patches(), self.config.data, self.device, self.config.train.channels_last and self.dimensions == 2)

    @cached_property
    def around(self) -> Surroundings:
        """What the stages share; made when training starts, because it opens the run's records for writing."""
        watched, most = self.prepared("validation"), self.config.train.validation_slices

        def validate(network: nn.Module) -> Mapping[str, float]:
            return mean_dice(watched, self.dataset.info, self.float_predictor(network), most) if watched else {}

        batches = EpochBatches(
            self._patches(), self.config.data, self.device, self.config.train.channels_last and self.dimensions == 2, self.group
        )
        return Surroundings(
            config=self.config.train,
            batches=batches,
            validate=validate,
            recorder=Recorder(self.run_folder.path, self._kept_records(), events=not self.only_scores) if self.group.is_first else None,
            reporter=self.reporter,
            last_folder=self.run_folder.last,
            device=self.device,
            bfloat16=use_bfloat16(self.config.train.amp, self.device),
            stop_requested=self.stop_requested,
            group=self.group,
        )

    def _kept_records(self) -> set[tuple[str, int]]:
        """The epochs that count: all of finished stages, and those of the present one that are complete."""
        if not has_checkpoint(self.run_folder.last):
            return set()
        progress = progress_of(load_checkpoint(self.run_folder.last))
        kept = {(progress.stage, epoch) for epoch in range(progress.epoch)}
        return kept | {(stage, epoch) for stage in progress.finished_stages for epoch in range(self.config.train.epochs)}

    # --- the run --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train all stages, from wherever the run stands.

        Raises:
            InterruptedRunError: stopped on request, saved.
            CheckpointError: the disk is full, or a checkpoint is damaged.
            InputError: a process that loads patches was killed, or one that trains with this one is gone.
        """
        if self.config.data.region == "coarse":
            # Imported here: the coarse stage is itself a session.
            from medquant.train.coarse import train_coarse

            self.group.first(lambda: train_coarse(self))
        self.group.together(lambda: self.around)
        self.group.agree({"bfloat16": str(self.around.bfloat16), "device": self.device.type})
        if self.group.is_first:
            noted = {"processes": self.group.size} if self.group.size > 1 or "processes" in self.run_folder.document else {}
            self.run_folder.note(device=str(self.device), threads=self.threads, bfloat16=self.around.bfloat16, **noted)
        try:
            finished = self.group.first(lambda: stages_before(self))
            if "warm" not in finished:
                self._train_warm()
            if "float" not in finished and (self.config.train.float_twin or self.plan.is_float):
                self._train_float()
            if not self.plan.is_float:
                self._train_quantized()
        except RuntimeError as error:
            if worker_was_killed(error):
                raise InputError(f"{self.run_folder.path}: {KILLED}") from error
            if connection_lost(error):
                raise InputError(f"{self.run_folder.path}: {LOST}") from error
            raise
        finally:
            self.around.batches.close()
            if self.around.recorder is not None:
                self.around.recorder.close()

    def _train_warm(self) -> None:
        plan = StagePlan("warm", self.warm_epochs, 0, self.config.train.lr, None)
        StageRunner(plan, self.network, self.around, []).run()
        self._reestimate(self.network)
        self._save(self.run_folder.warm, weights_of(self.network))

    def _train_float(self) -> None:
        folder = self.run_folder.best if self.plan.is_float else self.run_folder.twin
        load_model(load_checkpoint(self.run_folder.warm), self.network)
        StageRunner(self._second_stage("float", folder), self.network, self.around, ["warm"]).run()
        self._settle(self.network, folder, "batch_norm_reestimated")

    def _save(self, folder: Path, checkpoint: Checkpoint) -> None:
        """Write what all processes hold alike; it is there for all of them when this returns."""
        self.group.any(False)  # none may still be reading what stood there
        self.group.first(lambda: save_checkpoint(folder, checkpoint))

    def _settle(self, network: nn.Module, folder: Path, mark: str) -> None:
        """Estimate the batch norm statistics of a kept network over many batches; training left those of the last few of one epoch."""
        kept = load_checkpoint(folder)
        if not kept.values.get(mark):
            load_model(kept, network)
            self._reestimate(network)
            self._save(folder, Checkpoint(weights_of(network).tensors, {**kept.values, mark: True}))

    def _train_quantized(self) -> None:
        finished = [stage for stage in ("warm", "float") if stage == "warm" or self.config.train.float_twin]
        network = self.quantized_network()
        last = self.run_folder.last
        if not (has_checkpoint(last) and progress_of(load_checkpoint(last)).stage == "quantized"):
            self._calibrate(network)
        if not self.method.learns:
            self._save(self.run_folder.best, Checkpoint(weights_of(network).tensors, {"stage": "calibrated"}))
            return
        plan = self._second_stage("quantized", self.run_folder.best)
        StageRunner(plan, network, self.around, finished, self.config.quant, self._teacher()).run()
        if self.method.keeps_batch_norm:
            # A mark of its own: the other one says that a folder holds a finished float network.
            self._settle(network, self.run_folder.best, "statistics_settled")

    def _teacher(self) -> nn.Module | None:
        """The float twin, whose probabilities the quantized network learns from."""
        if self.config.quant.distillation == 0:
            return None
        load_model(load_checkpoint(self.run_folder.twin), self.network)
        return self.network.eval().requires_grad_(False)

    def _second_stage(self, name: str, folder: Path) -> StagePlan:
        train = self.config.train
        return StagePlan(name, train.epochs - self.warm_epochs, self.warm_epochs, train.quant_lr, folder, train.float32_epochs)

    def quantized_network(self) -> QuantNetwork:
        """The quantized network over the weights of the warm start, or of the finished float network, not yet calibrated."""
        start = self.run_folder.warm if self.method.learns or not self.config.train.float_twin else self.run_folder.twin
        load_model(load_checkpoint(start), self.network)
        graph, plan = plan_network(self.config, self.network, self.inputs)
        return self._place(QuantNetwork(graph, plan, self.method))

    def _calibrate(self, network: QuantNetwork) -> None:
        batches = self.around.batches.epoch(
            _CALIBRATION_EPOCH, 0, min(self.config.quant.calibration_batches, self.config.train.steps_per_epoch), whole=True
        )
        network.calibrate(images for images, _ in batches)

    def _reestimate(self, network: nn.Module) -> None:
        steps = min(2 * self.config.quant.calibration_batches, self.config.train.steps_per_epoch)
        reestimate_batch_norm(network, (images for images, _ in self.around.batches.epoch(_BATCH_NORM_EPOCH, 0, steps, whole=True)))
