"""The native engine's library: exact integer kernels in C++, built when medquant is installed where there is a compiler."""

from __future__ import annotations

from medquant.deploy.native.library import NativeLibrary, chosen_kernels, forced_kernels, load_library, why_missing

__all__ = ["NativeLibrary", "chosen_kernels", "forced_kernels", "load_library", "why_missing"]
