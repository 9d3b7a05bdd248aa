"""What every test gets: the folder of real data, and guards that fail a test which leaves something behind for the next one."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]

# Tests that open an exported file with OpenVINO as its users would must not report to its maker either: it is missing to them.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# A busy machine is no reason to fail; the same examples every time, so that a failure can be run again.
settings.register_profile("medquant", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("medquant")

# pytest writes the first; libraries set the others once, when they are imported or first touch a GPU.
_MAY_CHANGE = frozenset(
    {"PYTEST_CURRENT_TEST", "CUDA_MODULE_LOADING", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TF2_BEHAVIOR", "TPU_ML_PLATFORM"}
    | {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUBLAS_WORKSPACE_CONFIG", "MPLCONFIGDIR", "GDCM_RESOURCES_PATH"}
)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded scans go into a folder of this test run, not into that of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDQUANT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images (see its README); the test is skipped where there is none."""
    folder = Path(os.environ.get("MEDQUANT_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs the real images, which are not in {folder}; set MEDQUANT_SHARED_DATA to their folder")
    return folder


@pytest.fixture(autouse=True)
def no_leaked_environment() -> Iterator[None]:
    """Fail a test that leaves environment variables changed."""
    before = dict(os.environ)
    yield
    names = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)} - _MAY_CHANGE
    for name in names:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
    if names:
        pytest.fail(f"the test left environment variables changed: {', '.join(sorted(names))}; use monkeypatch.setenv")


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """Fail a test that leaves threads running which would keep the process alive."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 2
    while True:
        left = [thread.name for thread in threading.enumerate() if thread not in before and not thread.daemon]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    if left:
        pytest.fail(f"the test left threads running: {', '.join(left)}; join them")


@pytest.fixture(autouse=True)
def no_leaked_folder() -> Iterator[None]:
    """Fail a test that leaves the working folder changed."""
    before = Path.cwd()
    yield
    after = Path.cwd()
    if after != before:
        os.chdir(before)
        pytest.fail(f"the test left the working folder at {after}; use monkeypatch.chdir")


@pytest.fixture(autouse=True)
def no_leaked_torch_settings() -> Iterator[None]:
    """Fail a test that leaves torch's global settings changed: results depend on each of them."""
    # A test that imports torch first finds its defaults afterwards; there is nothing to compare with, and nothing is imported here.
    before = _torch_settings()
    values = {name: read() for name, (read, _) in before.items()}
    yield
    changed = []
    for name, (read, write) in before.items():
        if read() != values[name]:
            changed.append(f"{name} = {read()} (was {values[name]})")
            write(values[name])
    if changed:
        pytest.fail(f"the test left torch settings changed: {', '.join(changed)}")


def _torch_settings() -> dict[str, tuple[Callable[[], object], Callable[..., object]]]:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "set_default_device"):
        return {}
    return {
        "threads": (torch.get_num_threads, torch.set_num_threads),
        "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
        "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
        "float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        "cudnn.benchmark": _attribute(torch.backends.cudnn, "benchmark"),
        "cudnn.deterministic": _attribute(torch.backends.cudnn, "deterministic"),
    }


def _attribute(owner: object, name: str) -> tuple[Callable[[], object], Callable[[object], object]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)
