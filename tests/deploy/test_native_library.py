"""The native library: found, typed, refused where it does not fit, and no condition of installing medquant."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from medquant.deploy.native import NativeLibrary, chosen_kernels, forced_kernels, library, load_library, why_missing
from medquant.errors import EngineMismatchError, InputError, MedquantError, UsageError

FASTEST_FIRST = ("avx512vnni", "avxvnni", "avx2", "neon_i8mm", "neon_dotprod", "portable")
KNOWN_SETS = set(FASTEST_FIRST)

# A library of the same interface, whose answers are known: it has no error of its own, and says what it was asked to.
STAND_IN = """
#include "api.h"
#include <cstring>
struct mq_engine { int threads; };
static mq_engine the_engine;
static int fail(int status, const char* text, char* error, size_t bytes) { std::strncpy(error, text, bytes); return status; }
int mq_abi(void) { return ABI; }
const char* mq_kernels(void) { return "fast,portable"; }
int mq_open(const uint8_t* program, size_t bytes, const int8_t* const* weights, const size_t* sizes, size_t count, const char* kernels,
            int threads, mq_engine** engine, char* error, size_t error_bytes) {
  if (bytes == 0) return fail(MQ_REFUSED, "an empty program", error, error_bytes);
  if (program[0] != 'P') return fail(MQ_MEMORY, "no memory", error, error_bytes);
  if (count != 2 || sizes[1] != 3 || weights[1][2] != -7) return fail(MQ_FAILED, "other weights", error, error_bytes);
  if (std::strcmp(kernels, "fast") != 0) return fail(MQ_FAILED, "other kernels", error, error_bytes);
  the_engine.threads = threads;
  *engine = &the_engine;
  return MQ_OK;
}
int mq_output_shape(mq_engine*, const int64_t* shape, size_t axes, int64_t* output, char* error, size_t bytes) {
  if (axes != 4) return fail(MQ_INPUT, "four axes, please", error, bytes);
  for (size_t i = 0; i < axes; i++) output[i] = shape[i];
  output[1] = 2;
  return MQ_OK;
}
int mq_run(mq_engine* engine, const uint8_t* image, const int64_t*, size_t, int32_t* output, size_t values, char*, size_t) {
  for (size_t i = 0; i < values; i++) output[i] = -1000 * engine->threads - image[i / 2];
  return MQ_OK;
}
int mq_decide(mq_engine*, const uint8_t* image, const int64_t*, size_t, uint8_t* mask, size_t values, char*, size_t) {
  for (size_t i = 0; i < values; i++) mask[i] = 255 - image[i];
  return MQ_OK;
}
void mq_set_timing(mq_engine* engine, int on) { engine->threads += on; }
size_t mq_describe(mq_engine* engine, char* text, size_t bytes) {
  if (bytes >= 3) { text[0] = '0' + engine->threads; text[1] = '!'; text[2] = 0; }
  return 3;
}
void mq_close(mq_engine* engine) { engine->threads = 0; }
"""


def compile_library(source: Path, *options: str) -> Path:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    made = source.parent / library.FILE_NAME
    command = [compiler, "-std=c++17", "-shared", "-fPIC", *options, str(source), "-o", str(made)]
    subprocess.run(command, check=True, timeout=120)
    return made


def build(repository: Path, folder: Path, abi: int = 1, kernels: str = "fast,portable") -> Path:
    source = folder / "stand_in.cpp"
    source.write_text(STAND_IN.replace("fast,portable", kernels), encoding="utf-8")
    return compile_library(source, f"-DABI={abi}", f"-I{repository / 'native' / 'src'}")


@pytest.fixture(scope="module")
def stand_in(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> NativeLibrary:
    return NativeLibrary(build(repository, tmp_path_factory.mktemp("stand_in")))


def test_every_function_of_the_header_has_a_type(repository: Path) -> None:
    header = (repository / "native" / "src" / "api.h").read_text(encoding="utf-8")
    declared = dict(re.findall(r"MQ_EXPORT [^;(]*?(mq_\w+)\(([^;]*)\);", header))
    counts = {name: 0 if text == "void" else text.count(",") + 1 for name, text in declared.items()}
    assert counts == {name: len(arguments) for name, (_, arguments) in library._SIGNATURES.items()}
    assert f"#define MQ_ABI {library.ABI}\n" in header
    codes = {name: int(value) for name, value in re.findall(r"(MQ_[A-Z]+) = (\d)", header)}
    expected = {"MQ_OK": library._OK, "MQ_REFUSED": library._REFUSED, "MQ_INPUT": library._INPUT, "MQ_MEMORY": library._MEMORY}
    assert codes == expected | {"MQ_FAILED": 4}


def test_arguments_and_results_pass_through_unchanged(stand_in: NativeLibrary) -> None:
    # Every second value of a larger array: what is not contiguous is made so.
    weights = [np.zeros((1, 1), np.int8), np.array([1, 0, 2, 0, -7, 0], np.int8)[::2]]
    handle = stand_in.open(b"P\0\1", weights, "fast", 3)
    image = np.array([[[[1, 2], [3, 250]]]], np.uint8)
    output = stand_in.run(handle, image)
    assert output.dtype == np.int32
    assert output.tolist() == [[[[-3001, -3001], [-3002, -3002]], [[-3003, -3003], [-3250, -3250]]]]
    mask = stand_in.decide(handle, image.transpose(0, 1, 3, 2))
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[[254, 252], [253, 5]]]
    stand_in.set_timing(handle, True)
    assert stand_in.describe(handle) == "4!"
    stand_in.close(handle)
    assert stand_in.describe(handle) == "0!"


@pytest.mark.parametrize(
    ("program", "kernels", "kind", "message"),
    [
        (b"", "fast", EngineMismatchError, "an empty program"),
        (b"Q", "fast", MemoryError, "no memory"),
        (b"P", "slow", MedquantError, "other kernels"),
    ],
)
def test_what_the_library_refuses_is_a_typed_error(stand_in: NativeLibrary, program, kernels, kind, message) -> None:  # type: ignore[no-untyped-def]
    weights = [np.zeros(1, np.int8), np.array([0, 0, -7], np.int8)]
    with pytest.raises(kind, match=message) as raised:
        stand_in.open(program, weights, kernels, 1)
    assert raised.type is kind


def test_an_image_that_does_not_fit_is_an_input_error(stand_in: NativeLibrary) -> None:
    handle = stand_in.open(b"P", [np.zeros(1, np.int8), np.array([0, 0, -7], np.int8)], "fast", 1)
    with pytest.raises(InputError, match="four axes, please"):
        stand_in.run(handle, np.zeros((1, 1, 2), np.uint8))
    with pytest.raises(InputError, match="found int64"):
        stand_in.run(handle, np.zeros((1, 1, 2, 2), np.int64))  # type: ignore[arg-type]


def missing_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said where the library's folder is this one."""
    monkeypatch.setattr(library, "FOLDER", folder)
    reason = why_missing()
    assert reason is not None
    assert "\n" not in reason
    with pytest.raises(UsageError, match=re.escape(reason)):
        load_library()
    return reason


def test_a_missing_library_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = missing_in(tmp_path, monkeypatch)
    assert "was not built when medquant was installed" in reason
    assert reason.endswith("with a compiler: make native")


def test_what_is_no_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / library.FILE_NAME).write_bytes(b"no library")
    assert f"the native library {tmp_path / library.FILE_NAME} cannot be loaded" in missing_in(tmp_path, monkeypatch)


def test_a_library_without_the_functions_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.cpp").write_text('extern "C" int other() { return 0; }', encoding="utf-8")
    compile_library(tmp_path / "empty.cpp")
    assert "mq_abi" in missing_in(tmp_path, monkeypatch)


def test_a_library_of_another_version_is_refused(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(repository, tmp_path, abi=2)
    assert "has interface 2, this medquant needs 1" in missing_in(tmp_path, monkeypatch)


def test_a_library_without_kernels_for_this_processor_is_refused(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(repository, tmp_path, kernels="")
    assert "has no kernels for this processor" in missing_in(tmp_path, monkeypatch)


def test_kernels_can_be_forced(stand_in: NativeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDQUANT_KERNELS", raising=False)
    assert (forced_kernels(stand_in), chosen_kernels(stand_in)) == ("auto", "fast")
    for name, chosen in (("fast", "fast"), ("portable", "portable"), ("auto", "fast")):
        monkeypatch.setenv("MEDQUANT_KERNELS", name)
        assert (forced_kernels(stand_in), chosen_kernels(stand_in)) == (name, chosen)
    monkeypatch.setenv("MEDQUANT_KERNELS", "portble")
    with pytest.raises(UsageError) as raised:
        forced_kernels(stand_in)
    expected = "unknown kernel set on this processor 'portble' (did you mean 'portable'?); known: auto, fast, portable"
    assert str(raised.value) == f"MEDQUANT_KERNELS: {expected}"


def test_the_library_that_was_built_here_works() -> None:
    if why_missing() is not None:
        pytest.skip(f"needs the library: {why_missing()}")
    loaded = load_library()
    assert loaded is load_library()
    assert loaded.path.parent == Path(library.__file__).parent
    # The fastest first; a library for one processor may hold fewer.
    assert loaded.kernels
    assert [name for name in FASTEST_FIRST if name in loaded.kernels] == list(loaded.kernels)
    with pytest.raises(MedquantError):
        loaded.open(b"no program", [], "auto", 1)


def test_installing_never_needs_a_compiler(repository: Path) -> None:
    build_settings = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["scikit-build"]
    overrides = [(override.pop("if"), override) for override in build_settings["overrides"]]
    assert ({"failed": True}, {"wheel": {"cmake": False}}) in overrides
    assert build_settings["wheel"]["py-api"] == "py3"


def test_a_checkout_is_found_by_a_plain_path() -> None:
    """A finder of the build backend would win over the current folder, and another checkout's tests would test this one."""
    found = find_spec("medquant")
    assert found is not None
    assert type(found.loader) is SourceFileLoader


def test_every_kernel_file_has_its_flags(repository: Path) -> None:
    text = (repository / "native" / "cmake" / "kernel_sets.cmake").read_text(encoding="utf-8")
    listed = re.search(r"set\(medquant_sets ([^)]*)\)", text)
    assert listed is not None
    # The set that asks nothing of the processor comes first: the linker keeps its copy of what several have.
    assert listed.group(1).split()[0] == "portable"
    assert set(listed.group(1).split()) == KNOWN_SETS
    files = {path.stem.removeprefix("kernels_") for path in (repository / "native" / "src").glob("kernels_*.cpp")}
    assert files <= KNOWN_SETS
