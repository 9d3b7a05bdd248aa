"""The native engine around its library: what it hands over, keeps and gives back; and, where the library is built, its numbers."""

from __future__ import annotations

import gc
import json
import os
import runpy
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from native_cases import REAL_PROGRAMS
from numpy.typing import NDArray
from packed_files import every_node, tiny
from small_models import model_file

from medquant.deploy.decide import decide
from medquant.deploy.engines import ENGINES, auto_order, native_engine, open_engine
from medquant.deploy.engines.native_engine import NativeEngine, without_weights
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.deploy.native.library import load_library, why_missing
from medquant.deploy.native.program import encode_program
from medquant.deploy.packed import load_model
from medquant.errors import EngineMismatchError, InputError, MedquantError, UsageError
from medquant.predict.model_case import open_model
from medquant.predict.working_set import program_bytes, working_bytes
from medquant.quant.program import ConvolutionNode
from medquant.quant.shapes import infer_shapes

IMAGE = np.zeros((1, 1, 8, 8), np.uint8)


class Library:
    """Stands for the native library: remembers what it was asked, and fails as told."""

    kernels = ("fast", "portable")

    def __init__(self, failure: BaseException | None = None) -> None:
        self.failure = failure
        self.opened: list[tuple[bytes, int, str, int]] = []
        self.closed: list[int] = []
        self.running = self.most_running = 0

    def open(self, program: bytes, weights: Sequence[NDArray[np.int8]], kernels: str, threads: int) -> int:
        self.opened.append((program, len(weights), kernels, threads))
        if self.failure is not None:
            raise self.failure
        return 41 + len(self.opened)

    def run(self, handle: int, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        time.sleep(0.02)
        self.running -= 1
        return np.full(image.shape, handle, np.int32)

    def decide(self, handle: int, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.full(image[:, 0].shape, handle, np.uint8)

    def close(self, handle: int) -> None:
        self.closed.append(handle)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    monkeypatch.setattr(native_engine.native, "load_library", lambda: found)
    monkeypatch.delenv("MEDQUANT_KERNELS", raising=False)
    return found


def test_what_is_handed_over(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    engine = NativeEngine(every_node())
    monkeypatch.setenv("MEDQUANT_KERNELS", "portable")
    other = NativeEngine(tiny())
    assert library.opened == [(encode_program(every_node())[0], 4, "auto", 3), (encode_program(tiny())[0], 1, "portable", 3)]
    assert (engine.run(IMAGE) == 42).all()
    assert (other.run(IMAGE) == 43).all()
    assert other.run_decided(IMAGE).tolist() == [[[43] * 8] * 8]
    monkeypatch.setenv("MEDQUANT_KERNELS", "fastest")
    with pytest.raises(UsageError, match=r"MEDQUANT_KERNELS.*'fastest'"):
        NativeEngine(tiny())


@pytest.mark.parametrize(
    ("kernels", "forced", "place"),
    [
        (("avx512vnni", "avx2", "portable"), None, 0),
        (("avxvnni", "portable"), "auto", 0),
        (("avx512vnni", "portable"), "portable", 3),
        (("avx2", "portable"), None, 3),
        (("neon", "portable"), None, 3),
    ],
)
def test_first_where_bytes_are_multiplied_and_added_at_once(
    kernels: tuple[str, ...], forced: str | None, place: int, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "kernels", kernels)
    if forced is not None:
        monkeypatch.setenv("MEDQUANT_KERNELS", forced)
    for engine in ENGINES.values():
        monkeypatch.setattr(engine, "unavailable", lambda: None)
    names = ["openvino", "torch", "onnxruntime", "reference"]
    assert [engine.info.name for engine in auto_order()] == [*names[: max(0, place - 1)], "native", *names[max(0, place - 1) :]]


def test_auto_does_not_go_past_a_setting_that_names_nothing(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_engine.native, "why_missing", lambda: None)
    monkeypatch.setenv("MEDQUANT_KERNELS", "fastest")
    with pytest.raises(UsageError, match=r"MEDQUANT_KERNELS: unknown kernel set on this processor 'fastest'"):
        open_engine("auto", tiny())


def test_a_predictor_keeps_no_weights(library: Library, tmp_path: Path) -> None:
    coarse = model_file(tmp_path / "coarse.mq")
    packed = load_model(model_file(tmp_path / "model.mq", region={"kind": "coarse", "margin_mm": 5.0, "minimum": [8, 8]}, coarse=coarse))
    programs = [packed.program] if packed.coarse is None else [packed.program, packed.coarse.program]
    weights = [weakref.ref(node.weight) for program in programs for node in program.convolutions]
    assert len(weights) == 12
    model = open_model(packed, "native")
    del packed, programs
    gc.collect()
    own = weights[:6]
    assert [weight() for weight in own] == [None] * 6
    assert model.packed.program is model.predictor.program is model.predictor.engine.program
    assert model.packed.coarse is not None
    assert model.coarse is not None
    assert model.packed.coarse.program is model.coarse[0].program


def test_freed_memory_is_given_back_once_before_the_first_image(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(native_engine, "give_back_freed_memory", lambda: calls.append(None))
    engine = NativeEngine(tiny())
    assert calls == []
    engine.run(IMAGE)
    engine.run_decided(IMAGE)
    assert len(calls) == 1


def test_closed_once_with_the_last_reference(library: Library) -> None:
    engine = NativeEngine(tiny())
    run = engine.run
    del engine
    gc.collect()
    assert library.closed == []
    del run
    gc.collect()
    assert library.closed == [42]


def test_a_fork_neither_runs_nor_closes(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = NativeEngine(tiny())
    monkeypatch.setattr(native_engine.os, "getpid", lambda: -1)
    with pytest.raises(EngineMismatchError, match="engine native cannot run in the fork of the process that opened it"):
        engine.run(IMAGE)
    del engine
    gc.collect()
    assert library.closed == []
    # Opened there, it is the child's own.
    NativeEngine(tiny()).run(IMAGE)
    gc.collect()
    assert library.closed == [43]


def test_threads_take_turns(library: Library) -> None:
    engine = NativeEngine(tiny())
    threads = [threading.Thread(target=engine.run, args=(IMAGE,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert library.most_running == 1


def test_weights_are_let_go_and_the_shapes_stay(library: Library) -> None:
    program = every_node()
    weights = [weakref.ref(node.weight) for node in program.convolutions]
    shapes = infer_shapes(program, (1, 1, 16, 16))
    engine = NativeEngine(program)
    del program
    gc.collect()
    assert [weight() for weight in weights] == [None] * 4
    assert infer_shapes(engine.program, (1, 1, 16, 16)) == shapes
    for node in engine.program.convolutions:
        assert (set(node.weight.strides), node.weight.dtype, node.weight.any()) == ({0}, np.int8, False)
    for wrong in (np.zeros((1, 2, 8, 8), np.uint8), np.zeros((1, 1, 8, 8, 8), np.uint8), np.zeros((1, 1, 8, 8), np.int8)):
        with pytest.raises(InputError, match="the program reads uint8 images of 1"):
            engine.run(wrong)


def test_all_but_weights_stays_the_same() -> None:
    program = every_node()
    bare = without_weights(program)
    assert bare.output_exponents == program.output_exponents
    for node, other in zip(program.convolutions, bare.convolutions, strict=True):
        assert (other.geometry, other.bias is node.bias, other.weight.shape) == (node.geometry, True, node.weight.shape)
    others = [(node, other) for node, other in zip(program, bare, strict=True) if not isinstance(node, ConvolutionNode)]
    assert len(others) == 8
    assert all(node is other for node, other in others)


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (EngineMismatchError("conv: sums too large"), EngineMismatchError, "^conv: sums too large$"),
        (MemoryError("12 GiB"), EngineMismatchError, r"engine native cannot open the program here \(12 GiB\); use another engine"),
        (MedquantError("no threads"), EngineMismatchError, r"cannot open the program here \(no threads\)"),
    ],
)
def test_what_cannot_be_opened(failure: Exception, kind: type[Exception], message: str, library: Library) -> None:
    library.failure = failure
    with pytest.raises(kind, match=message):
        NativeEngine(tiny())
    assert library.closed == []


def test_registered_and_absent_where_the_library_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ENGINES["native"] is NativeEngine
    monkeypatch.setattr(native_engine.native, "why_missing", lambda: "not built")
    assert NativeEngine.unavailable() == "not built"


# --- with the library ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built() -> None:
    reason = why_missing()
    if reason is not None:
        pytest.skip(reason)
    try:
        NativeEngine(tiny())
    except EngineMismatchError as error:
        if "is not there yet" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("name", REAL_PROGRAMS)
def test_numbers_of_the_reference(name: str) -> None:
    program = REAL_PROGRAMS[name]()
    engine = NativeEngine(program)
    for sides in ((16, 32, 8), (40, 24, 16)):
        shape = (2, program.image.channels, *sides[: program.dimensions])
        image = np.random.default_rng(sides[0]).integers(0, 256, shape).astype(np.uint8)
        expected = ReferenceEngine(program).run(image)
        assert np.array_equal(engine.run(image), expected)
        assert np.array_equal(engine.run_decided(image), decide(expected, program))


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("name", [name for name in REAL_PROGRAMS if name != "every node"])
def test_running_takes_no_more_than_is_counted(name: str) -> None:
    """Beside tensors the arena holds rings around them and one layer's weights as the kernels read them."""
    program = REAL_PROGRAMS[name]()
    sides = (256, 192) if program.dimensions == 2 else (64, 48, 32)
    shape = (1, program.image.channels, *sides)
    engine = NativeEngine(program)
    engine.run(np.zeros(shape, np.uint8))
    taken = json.loads(engine._library.describe(engine._handle))["arena_bytes"]
    counted = working_bytes(program, shape, "native")
    assert taken <= counted + program_bytes(program)
    if name.startswith("U-Net"):
        # Counted too high, images are cut into tiles that need not be.
        assert counted < 5 * taken


@pytest.mark.usefixtures("built")
def test_what_every_wheel_is_tried_with(repository: Path) -> None:
    miscalculated = runpy.run_path(str(repository / "native" / "tests" / "try_wheel.py"))["miscalculated"]
    for kernels in load_library().kernels:
        assert miscalculated(load_library(), kernels) is None


_FORK = """
import os, sys
import numpy as np
sys.path.insert(0, "tests/deploy")
from packed_files import tiny
from medquant.deploy.engines.native_engine import NativeEngine
from medquant.errors import EngineMismatchError

engine, image = NativeEngine(tiny()), np.zeros((1, 1, 64, 64), np.uint8)
expected = engine.run(image)
child = os.fork()
if child == 0:
    try:
        engine.run(image)
    except EngineMismatchError:
        del engine
        os._exit(0 if (NativeEngine(tiny()).run(image) == expected).all() else 2)
    os._exit(1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.exit(code if (engine.run(image) == expected).all() else 3)
"""


@pytest.mark.usefixtures("built")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_real_fork() -> None:
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", _FORK], cwd=root, timeout=120, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
