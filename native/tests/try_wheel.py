"""Tries an installed wheel where there is nothing but numpy: the library is in it, loads, and answers. See [tool.cibuildwheel]."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from medquant.deploy.native import load_library
from medquant.errors import MedquantError


def main() -> str | None:
    """What is wrong, None where nothing is."""
    if find_spec("torch") is not None:
        return "torch is installed: this tries what works without it"
    library = load_library()
    if library.kernels[-1] != "portable":
        return f"the kernel sets are {library.kernels}; portable runs everywhere and comes last"
    for kernels in library.kernels:
        try:
            library.open(b"no program", [], kernels, 1)
        except MedquantError:
            continue
        return f"kernel set {kernels} opened what is no program"
    return None


if __name__ == "__main__":
    sys.exit(main())
