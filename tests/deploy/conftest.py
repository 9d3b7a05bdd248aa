"""A model file that tests of several files damage, forge and turn into one of an older schema."""

from __future__ import annotations

import pytest
from packed_files import METADATA, tiny

from medquant.deploy.packed import save_model


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tiny") / "m.mq"
    save_model(path, tiny(), METADATA)
    return path.read_bytes()
