"""Generate a phantom in the layout of a download: ``python prepare.py KIND OUT [OPTIONS]``, as ``medquant prepare phantom`` does."""

from __future__ import annotations

import sys

from medquant.cli.main import app

if __name__ == "__main__":
    app(["prepare", "phantom", *sys.argv[1:]])
