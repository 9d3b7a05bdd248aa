"""Values of a patient, planted in data sets of every layout, are in nothing that medquant says or writes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import small_sessions
from planted_patients import SECRETS, membranes, nnunet, pancreas, secrets_below, secrets_in, spinal

from medquant.cli.main import main
from medquant.train import coarse as coarse_module

DATASETS: dict[str, tuple[Callable[[Path], Path], str | None]] = {
    "pancreas": (pancreas, "pancreas-ct"),
    "spinal": (spinal, "spinal-gm"),
    "folder": (nnunet, None),
    "membranes": (membranes, "isbi-em"),
}
"""How each is planted, and its name for ``prepare``."""

OPTIONS = [part for text in (*small_sessions.SMALL, "data.spacing_mm=null") for part in ("-o", text)]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def data(name: str) -> Path:
        if name not in made:
            made[name] = DATASETS[name][0](tmp_path_factory.mktemp(name) / "data")
        return made[name]

    return data


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("MEDQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # the command sets it too
    monkeypatch.chdir(tmp_path)
    for name, value in (("_PATCH", 32), ("_BATCH", 2), ("_CHANNELS", 2), ("_DEPTH", 3), ("_EPOCHS", 3), ("_STEPS", 2)):
        monkeypatch.setattr(coarse_module, name, value)
    with small_sessions.small_world():
        yield


class Typed:
    """Types commands; keeps what they say, also below Python, to be searched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd, self.said = monkeypatch, capfd, ""

    def __call__(self, *arguments: object, code: int = 0) -> str:
        self._monkeypatch.setattr(sys, "argv", ["medquant", *(str(argument) for argument in arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capfd.readouterr()
        assert (ended.value.code or 0) == code, said.err
        self.said += said.out + said.err
        return said.out + said.err


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Typed:
    return Typed(monkeypatch, capfd)


@pytest.mark.parametrize("name", DATASETS)
def test_the_values_are_there_to_be_found(planted: Callable[[str], Path], name: str) -> None:
    """The search finds every value in the data set, so it would find it elsewhere."""
    found = set().union(*secrets_below(planted(name)).values())
    assert found == set(SECRETS) - (set() if name == "pancreas" else {"1.2.826.0.1.88."} - found)
    assert len(SECRETS) >= 20


@pytest.mark.parametrize("name", DATASETS)
def test_inspecting_and_preparing_tells_nothing(planted: Callable[[str], Path], typed: Typed, tmp_path: Path, name: str) -> None:
    data, dataset = planted(name), DATASETS[name][1]
    typed("inspect", data, "--json")
    for file in _one_of_each_kind(data):
        typed("inspect", file, "--verbose")
    if dataset is not None:
        for layout in ("nnunet", "msd"):
            typed("prepare", dataset, data, tmp_path / layout, "--layout", layout, "--verbose")
        assert len(list(tmp_path.glob("*/imagesTr/*.nii.gz"))) == 2 * len(list(tmp_path.glob("nnunet/imagesTr/*.nii.gz")))
    _check_nothing_left(typed, tmp_path)


def _one_of_each_kind(data: Path) -> list[Path]:
    """A file of each ending, and the folder of a series."""
    files = {path.suffix: path for path in sorted(data.rglob("*")) if path.suffix in (".gz", ".tif", ".dcm")}
    # The name of a file the user types is theirs to see.
    copies = [
        shutil.copy(path, Path(f"typed{''.join(path.suffixes[-2:]) if suffix == '.gz' else suffix}")) for suffix, path in files.items()
    ]
    if ".dcm" in files:
        shutil.copytree(files[".dcm"].parent, "typed-series")
        copies.append(Path("typed-series"))
    return [Path(copy) for copy in copies]


def _check_nothing_left(typed: Typed, folder: Path) -> None:
    for copy in folder.glob("typed*"):
        shutil.rmtree(copy) if copy.is_dir() else copy.unlink()
    assert secrets_in(typed.said.encode()) == set()
    assert secrets_below(folder) == {}


def _trained(planted: Callable[[str], Path], typed: Typed, folder: Path, name: str, region: str, further: bool = True) -> None:
    """Train, evaluate and report, and look through everything that was said and written."""
    data, run = planted(name), folder / "run"
    typed("train", "--data", data, "--out", run, *OPTIONS, "-o", f"data.region={region}", "--verbose")
    typed("eval", run / "model.mq", "--data", data, "--split", "validation", "--verbose")
    typed("report", run, "--out", folder / "report", "--json")
    if further:
        typed("eval", run, "--json", "--verbose")
        typed("plan", run / "model.mq")
        typed("train", "--resume", "--out", run)
    assert {"run.json", "eval.json", "model.mq", "pictures", "tensorboard"} <= {entry.name for entry in run.iterdir()}
    assert list((folder / "cache").rglob("*.npy")) or name == "membranes"
    _check_nothing_left(typed, folder)


def test_training_on_scans_tells_nothing(planted: Callable[[str], Path], typed: Typed, tmp_path: Path) -> None:
    _trained(planted, typed, tmp_path, "pancreas", "whole", further=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "region"),
    [("pancreas", "coarse"), ("spinal", "coarse"), ("spinal", "whole"), ("folder", "coarse"), ("folder", "whole"), ("membranes", "whole")],
)
def test_training_on_any_data_tells_nothing(planted: Callable[[str], Path], typed: Typed, tmp_path: Path, name: str, region: str) -> None:
    _trained(planted, typed, tmp_path, name, region)


@pytest.mark.parametrize("name", DATASETS)
def test_refusing_damaged_data_tells_nothing(planted: Callable[[str], Path], typed: Typed, tmp_path: Path, name: str) -> None:
    data = tmp_path / "typed-data"
    shutil.copytree(planted(name), data)
    # Test scans have no labels and are not read.
    files = [
        path for path in sorted(data.rglob("*")) if path.suffix in (".gz", ".tif", ".dcm") and "test" not in str(path.relative_to(data))
    ]
    for path in files[:: max(1, len(files) // 4)]:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
        said = typed("inspect", data, "--verbose", code=4)
        # What the user reads is searched without the traceback's paths, which end in the user's own folder.
        assert secrets_in(said[said.rindex("medquant: ") :].encode()) == set()
        path.write_bytes(whole)
    _check_nothing_left(typed, tmp_path)
