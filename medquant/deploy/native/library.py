"""Finds the native library beside this module and gives its C functions (``native/src/api.h``) types.

A missing library is no error until it is asked for: medquant installs without a compiler, and the other engines work.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medquant.errors import EngineMismatchError, InputError, MedquantError, UsageError, unknown_name

ABI = 1
AUTO = "auto"
KERNELS_VARIABLE = "MEDQUANT_KERNELS"

FOLDER = Path(__file__).resolve().parent
FILE_NAME = {"darwin": "libmedquant_native.dylib", "win32": "medquant_native.dll"}.get(sys.platform, "libmedquant_native.so")

# A checkout builds its own. Elsewhere pip must not take the wheel without the library that it kept from the last time.
_IS_CHECKOUT = (FOLDER.parents[2] / "native" / "editable").is_dir()
_REBUILD = "make native" if _IS_CHECKOUT else "pip install --force-reinstall --no-deps --no-cache-dir --no-binary medquant medquant"

_OK, _REFUSED, _INPUT, _MEMORY = range(4)
_MESSAGE_BYTES = 2048

_BYTES = ctypes.POINTER(ctypes.c_uint8)
_SIZES = ctypes.POINTER(ctypes.c_int64)
_ERROR = (ctypes.c_char_p, ctypes.c_size_t)
_PROGRAM = (ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t), ctypes.c_size_t)
_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "mq_abi": (ctypes.c_int, ()),
    "mq_kernels": (ctypes.c_char_p, ()),
    "mq_open": (
        ctypes.c_int,
        (*_PROGRAM, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), *_ERROR),
    ),
    "mq_output_shape": (ctypes.c_int, (ctypes.c_void_p, _SIZES, ctypes.c_size_t, _SIZES, *_ERROR)),
    "mq_run": (
        ctypes.c_int,
        (ctypes.c_void_p, _BYTES, _SIZES, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int32), ctypes.c_size_t, *_ERROR),
    ),
    "mq_decide": (ctypes.c_int, (ctypes.c_void_p, _BYTES, _SIZES, ctypes.c_size_t, _BYTES, ctypes.c_size_t, *_ERROR)),
    "mq_set_timing": (None, (ctypes.c_void_p, ctypes.c_int)),
    "mq_describe": (ctypes.c_size_t, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)),
    "mq_close": (None, (ctypes.c_void_p,)),
}


class NativeLibrary:
    """The C functions with Python's types. A handle is what :meth:`open` returned; it is not used after :meth:`close`.

    Args:
        path: the shared library.

    Raises:
        UsageError: it is missing, cannot be loaded, or belongs to another version of medquant.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UsageError(
                f"the native library was not built when medquant was installed (no C++ compiler?); with a compiler: {_REBUILD}"
            )
        try:
            self._functions = ctypes.CDLL(str(path))
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(self._functions, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise UsageError(f"the native library {path} cannot be loaded ({error}); build it again: {_REBUILD}") from error
        found = int(self._functions.mq_abi())
        if found != ABI:
            raise UsageError(f"the native library {path} has interface {found}, this medquant needs {ABI}; build it again: {_REBUILD}")
        self.path = path
        if not self.kernels:
            raise UsageError(f"the native library {path} has no kernels for this processor; build it again here: {_REBUILD}")

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kernel sets that this processor can run, the fastest first."""
        names: bytes = self._functions.mq_kernels()
        return tuple(filter(None, names.decode("ascii").split(",")))

    def open(self, program: bytes, weights: Sequence[NDArray[np.int8]], kernels: str, threads: int) -> int:
        """Have a program checked and packed; neither it nor the weights are needed afterwards.

        Args:
            program: the block of bytes.
            weights: one array for each convolution, in the order of the program.
            kernels: one of :attr:`kernels`, or ``auto``.
            threads: how many are used, the caller's among them.

        Returns:
            The handle, to be given to :meth:`close`.

        Raises:
            EngineMismatchError: the program is malformed, or not one that the library computes exactly.
            MemoryError: there is too little.
        """
        arrays = [np.ascontiguousarray(weight, dtype=np.int8) for weight in weights]
        pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        sizes = (ctypes.c_size_t * len(arrays))(*(array.size for array in arrays))
        handle, error = ctypes.c_void_p(), ctypes.create_string_buffer(_MESSAGE_BYTES)
        status = self._functions.mq_open(
            program, len(program), pointers, sizes, len(arrays), kernels.encode(), threads, ctypes.byref(handle), error, len(error)
        )
        _check(status, error)
        if handle.value is None:
            raise MedquantError("the native library opened a program and gave no handle")
        return handle.value

    def output_shape(self, handle: int, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the output, (N, outputs, *S), for an image of shape (N, C, *S).

        Raises:
            InputError: the image does not fit the program.
        """
        result, error = (ctypes.c_int64 * len(shape))(), ctypes.create_string_buffer(_MESSAGE_BYTES)
        _check(self._functions.mq_output_shape(handle, _sizes(shape), len(shape), result, error, len(error)), error)
        return tuple(result)

    def run(self, handle: int, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """The output integers, (N, outputs, *S), of an image, (N, C, *S).

        Raises:
            InputError: the image does not fit the program.
            MemoryError: there is too little.
        """
        output = np.empty(self.output_shape(handle, image.shape), np.int32)
        self._compute(self._functions.mq_run, handle, image, output, ctypes.c_int32)
        return output

    def decide(self, handle: int, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The class numbers, (N, *S), of an image, (N, C, *S).

        Raises:
            InputError: the image does not fit the program.
            MemoryError: there is too little.
        """
        batch, _, *sides = self.output_shape(handle, image.shape)
        mask = np.empty((batch, *sides), np.uint8)
        self._compute(self._functions.mq_decide, handle, image, mask, ctypes.c_uint8)
        return mask

    def set_timing(self, handle: int, on: bool) -> None:
        """Whether every step of a run is timed, for :meth:`describe`."""
        self._functions.mq_set_timing(handle, int(on))

    def describe(self, handle: int) -> str:
        """A JSON text on what was opened: kernel set, threads, bytes, and the steps with their times."""
        needed = self._functions.mq_describe(handle, None, 0)
        text = ctypes.create_string_buffer(max(needed, 1))
        self._functions.mq_describe(handle, text, len(text))
        return text.value.decode()

    def close(self, handle: int) -> None:
        """Give back what :meth:`open` took."""
        self._functions.mq_close(handle)

    def _compute(
        self,
        function: ctypes._NamedFuncPointer,
        handle: int,
        image: NDArray[np.uint8],
        result: NDArray[np.int32] | NDArray[np.uint8],
        value: type[ctypes.c_int32] | type[ctypes.c_uint8],
    ) -> None:
        if image.dtype != np.uint8:
            raise InputError(f"the native library reads images of uint8, found {image.dtype}")
        image, error = np.ascontiguousarray(image), ctypes.create_string_buffer(_MESSAGE_BYTES)
        place = result.ctypes.data_as(ctypes.POINTER(value))
        shape = _sizes(image.shape)
        status = function(handle, image.ctypes.data_as(_BYTES), shape, image.ndim, place, result.size, error, len(error))
        _check(status, error)


def load_library() -> NativeLibrary:
    """The library beside this module, loaded once.

    Raises:
        UsageError: there is none that works; see :func:`why_missing`.
    """
    found = _attempt(FOLDER / FILE_NAME)
    if isinstance(found, str):
        raise UsageError(found)
    return found


def why_missing() -> str | None:
    """Why the library does not work here, in one line; None where it does."""
    found = _attempt(FOLDER / FILE_NAME)
    return found if isinstance(found, str) else None


def forced_kernels(library: NativeLibrary) -> str:
    """The kernel set that ``MEDQUANT_KERNELS`` names, ``auto`` where it is not set.

    Raises:
        UsageError: no set of that name works on this processor.
    """
    name = os.environ.get(KERNELS_VARIABLE) or AUTO
    if name != AUTO and name not in library.kernels:
        raise UsageError(f"{KERNELS_VARIABLE}: {unknown_name('kernel set on this processor', name, [*library.kernels, AUTO])}")
    return name


def chosen_kernels(library: NativeLibrary) -> str:
    """The kernel set that engines opened now run on.

    Raises:
        UsageError: ``MEDQUANT_KERNELS`` names none of this processor.
    """
    name = forced_kernels(library)
    return library.kernels[0] if name == AUTO else name


@cache
def _attempt(path: Path) -> NativeLibrary | str:
    """The library, or why there is none."""
    try:
        return NativeLibrary(path)
    except UsageError as error:
        return str(error)


def _sizes(shape: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(shape))(*shape)


def _check(status: int, error: ctypes.Array[ctypes.c_char]) -> None:
    """Raise what a function returned and wrote."""
    if status == _OK:
        return
    message = error.value.decode("utf-8", "replace")
    if status == _MEMORY:
        raise MemoryError(message)
    kinds: dict[int, type[MedquantError]] = {_REFUSED: EngineMismatchError, _INPUT: InputError}
    raise kinds.get(status, MedquantError)(message)
