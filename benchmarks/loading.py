"""Loading at scale: memory of a training run on a Pancreas-CT-sized set, time spent waiting for data, and patches a second.

Four figures, each on the same phantom set in the official DICOM layout (written once, kept in ``--folder``):

- opening: decoding and checking every scan into the cache, and opening it again.
- training: all stages of ``medquant train`` on it, then two test cases predicted and scored on their own grid, in a process of
  its own; the highest memory of it and its workers together (PSS, so that shared pages count once; sampled four times a
  second), the highest resident set of the training process itself, and the share of each epoch it waited for data, from
  ``metrics.jsonl``.
- patches: patches a second of one loading process, against MONAI's own chain (``PersistentDataset`` of the whole volumes,
  then ``RandCropByPosNegLabeld`` and the same augmentation), in turns, ratio of medians with the spread over the rounds.

Run ``python -m benchmarks.loading --folder DIR``; ``--cases 4 --slices 40`` for a quick look.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PATCH = (192, 192)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the phantom set, the cache and the runs go")
    parser.add_argument("--cases", type=int, default=80)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--region", default="whole", choices=("whole", "coarse"))
    parser.add_argument("--skip-peer", action="store_true", help="leave MONAI's chain out")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    os.environ["MEDQUANT_CACHE"] = str(asked.folder / "cache")
    data = asked.folder / f"phantom-{asked.cases}x{asked.size}x{asked.size}x{asked.slices}"
    _make_phantom(data, asked)
    _report_opening(data)
    _report_training(data, asked)
    if not asked.skip_peer:
        _report_patches(data, asked.rounds)


def _make_phantom(data: Path, asked: argparse.Namespace) -> None:
    if data.exists():
        return
    options = ["--subjects", str(asked.cases), "--slices", str(asked.slices), "--size", str(asked.size)]
    command = [sys.executable, "-m", "medquant.cli.main", "prepare", "phantom", "pancreas-ct", str(data), *options, "--quiet"]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    size = sum(file.stat().st_size for file in data.rglob("*") if file.is_file())
    print(f"phantom set: {asked.cases} cases, {size / 1e9:.2f} GB, written in {time.perf_counter() - started:.0f} s", flush=True)


def _report_opening(data: Path) -> None:
    # In a child: its memory counts, and nothing of it stays here.
    code = (
        "import resource, sys, time; from pathlib import Path; from medquant.data.opening import open_dataset; "
        "started = time.perf_counter(); cases = open_dataset(Path(sys.argv[1])).cases; elapsed = time.perf_counter() - started; "
        "print(len(cases), elapsed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    for name in ("first", "again"):
        child = subprocess.run([sys.executable, "-c", code, str(data)], check=True, capture_output=True, text=True)
        cases, elapsed, peak_kib = child.stdout.split()[-3:]
        print(f"opening, {name}: {cases} cases in {float(elapsed):.1f} s, highest resident set {int(peak_kib) / 2**20:.2f} GiB", flush=True)


_TRAINING = """
import json, sys
from pathlib import Path
from medquant.evaluate.evaluation import evaluate_cases
from medquant.predict.float_predictor import FloatPredictor
from medquant.train.reporting import SilentReporter
from medquant.train.start import TrainRequest, start_training

data, out, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
session = start_training(TrainRequest(options={"data.path": str(data), **options}, out=out), SilentReporter(), lambda: False)
session.run()
evaluate_cases(session.prepared("test")[:2], session.dataset.info, FloatPredictor(session.network, session.size_multiple), keep_masks=())
"""


def _report_training(data: Path, asked: argparse.Namespace) -> None:
    run = asked.folder / f"run-{int(time.time())}"
    options = {
        "train.epochs": asked.epochs,
        "train.steps_per_epoch": asked.steps,
        "train.threads": asked.threads,
        "train.validation_slices": 64,
        "data.region": asked.region,
    }
    command = [sys.executable, "-c", _TRAINING, str(data), str(run), json.dumps(options)]
    child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(asked.threads)})
    watch = _MemoryWatch(child.pid)
    watch.start()
    code = child.wait()
    watch.join()
    print(f"training: exit {code}, highest memory of all its processes {watch.highest_pss / 2**30:.2f} GiB (PSS), ", end="")
    print(f"of the training process {watch.highest_rss / 2**30:.2f} GiB (resident, mapped files included)")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for stage in dict.fromkeys(str(record["stage"]) for record in records):
        mine = [record for record in records if record["stage"] == stage]
        shares = [100 * record["waited_for_data_s"] / record["elapsed_s"] for record in mine]
        print(
            f"  {stage}: waited for data {statistics.median(shares):.1f} % of the epoch ({min(shares):.1f}–{max(shares):.1f})", flush=True
        )


class _MemoryWatch(threading.Thread):
    """Samples the memory of a process and its children until it ends."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.highest_pss, self.highest_rss = pid, 0, 0

    def run(self) -> None:
        import psutil

        try:
            root = psutil.Process(self.pid)
            while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
                total = 0
                for process in (root, *root.children(recursive=True)):
                    try:
                        total += process.memory_full_info().pss
                    except (psutil.NoSuchProcess, psutil.AccessDenied):
                        continue
                self.highest_pss = max(self.highest_pss, total)
                self.highest_rss = max(self.highest_rss, root.memory_info().rss)
                time.sleep(0.25)
        except psutil.NoSuchProcess:
            return


def _report_patches(data: Path, rounds: int) -> None:
    import torch

    torch.set_num_threads(1)
    ours, peer = _our_patches(data), _monai_patches(data)
    ratios, rates = [], []
    for _ in range(rounds):
        mine, theirs = _rate(ours), _rate(peer)
        ratios.append(mine / theirs)
        rates.append((mine, theirs))
    median = [statistics.median(rate[place] for rate in rates) for place in (0, 1)]
    print(f"patches a second, one process: medquant {median[0]:.1f}, MONAI {median[1]:.1f}; ", end="")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")


def _rate(patches: Iterator[object], count: int = 24) -> float:
    next(patches)
    started = time.perf_counter()
    for _ in range(count):
        next(patches)
    return count / (time.perf_counter() - started)


def _our_patches(data: Path) -> Iterator[object]:
    from medquant.data.augment import Augmenter
    from medquant.data.normalise import Normalisation
    from medquant.data.opening import open_dataset
    from medquant.data.patches import PatchDataset
    from medquant.data.prepared import GridRule, Preparation, prepare_cases
    from medquant.data.stored import ArrayCache

    dataset = open_dataset(data)
    rule = Preparation(Normalisation("range", -100.0, 240.0), GridRule("axial"))
    cases = prepare_cases([case for case in dataset.cases if case.mask is not None], rule, ArrayCache(ArrayCache.default_folder()))
    patches = PatchDataset(cases, PATCH, Augmenter("mr", PATCH), 10**9, seed=0)
    return (patches[(0, index)] for index in range(10**9))


def _monai_patches(data: Path) -> Iterator[object]:
    """The same patches the way MONAI's users make them: the volume from a persistent cache, cropped, then augmented."""
    from monai import transforms
    from monai.data import PersistentDataset
    from monai.utils import set_determinism

    from medquant.data.opening import open_dataset
    from medquant.data.volume import Case

    set_determinism(seed=0)
    both = ("image", "label")

    def load(case: Case) -> dict[str, np.ndarray]:
        if case.mask is None:
            raise ValueError("unlabelled")
        return {"image": np.ascontiguousarray(case.image.array)[None], "label": np.ascontiguousarray(case.mask.array)[None]}

    cases = {case.id: case for case in open_dataset(data).cases if case.mask is not None}
    steps = [
        transforms.Lambda(lambda item: load(cases[item["id"]])),
        transforms.ScaleIntensityRanged(keys="image", a_min=-100, a_max=240, b_min=0, b_max=1, clip=True),
        transforms.RandCropByPosNegLabeld(keys=both, label_key="label", spatial_size=(*PATCH, 1), pos=1, neg=1, num_samples=1),
        transforms.SqueezeDimd(keys=both, dim=-1),
        transforms.Rand2DElasticd(
            keys=both,
            spacing=(24, 24),
            magnitude_range=(0.0, 1.2),
            prob=0.8,
            rotate_range=0.26,
            scale_range=0.12,
            mode=("bilinear", "nearest"),
            padding_mode="reflection",
        ),
        transforms.RandFlipd(keys=both, prob=0.5, spatial_axis=0),
        transforms.RandFlipd(keys=both, prob=0.5, spatial_axis=1),
        transforms.RandGaussianSmoothd(keys="image", prob=0.15),
        transforms.RandAdjustContrastd(keys="image", prob=0.5, gamma=(0.7, 1.4)),
        transforms.RandScaleIntensityd(keys="image", prob=0.5, factors=0.25),
        transforms.RandShiftIntensityd(keys="image", prob=0.5, offsets=0.25),
        transforms.RandGaussianNoised(keys="image", prob=0.3, std=0.15),
    ]
    folder = Path(os.environ["MEDQUANT_CACHE"]) / "monai"
    dataset = PersistentDataset([{"id": name} for name in list(cases)[:4]], transforms.Compose(steps), cache_dir=folder)
    for item in range(len(dataset)):
        dataset[item]  # written to its cache before anything is timed
    return (dataset[index % len(dataset)] for index in range(10**9))


if __name__ == "__main__":
    main()
