"""What tests of several files share: a model file to damage, forge and turn into an older schema, and the native loader."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_loader import Load, build_loader, loading
from packed_files import METADATA, tiny

from medquant.deploy.packed import save_model


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tiny") / "m.mq"
    save_model(path, tiny(), METADATA)
    return path.read_bytes()


@pytest.fixture(scope="session")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("native") / "load_program"
    build_loader(path)
    return path


@pytest.fixture
def load(loader: Path, tmp_path: Path) -> Load:
    return loading(loader, tmp_path)
