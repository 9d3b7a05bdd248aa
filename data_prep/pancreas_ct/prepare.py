"""Turn a download into a dataset folder: ``python prepare.py RAW OUT [OPTIONS]``, as ``medquant prepare pancreas-ct`` does."""

from __future__ import annotations

import sys

from medquant.cli.main import app

if __name__ == "__main__":
    app(["prepare", "pancreas-ct", *sys.argv[1:]])
