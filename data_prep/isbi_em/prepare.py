"""Turn a download into a dataset folder: ``python prepare.py RAW OUT [OPTIONS]``, as ``medquant prepare isbi-em`` does."""

from __future__ import annotations

import sys

from medquant.cli.main import app

if __name__ == "__main__":
    app(["prepare", "isbi-em", *sys.argv[1:]])
