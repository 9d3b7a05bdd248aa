"""The trial by which ``auto`` finds that an engine has no kernel here, and the measurement that must not contain it."""

from __future__ import annotations

import pytest

from medquant.deploy.engines import ENGINES, open_engine
from medquant.deploy.engines.base import Engine
from medquant.deploy.self_test import small_program


def test_an_idle_process_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    for engine in {*ENGINES.values(), Engine}:
        monkeypatch.setattr(engine, "try_out", lambda self: tried.append(self.info.name))
    assert open_engine("auto", small_program(), try_out=False).info.exact
    assert tried == []
    opened = open_engine("auto", small_program())
    assert tried == [opened.info.name]
