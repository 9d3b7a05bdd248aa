"""Proof that a model is what was validated: every engine and export against the reference, value by value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medquant.deploy.decide import decide, quantize_image
from medquant.deploy.engines import ENGINES
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.deploy.export_runtimes import first_line, runtimes_for
from medquant.errors import EngineMismatchError
from medquant.quant.program import IntegerProgram

_SIDES = {2: (40, 56), 3: (16, 24)}
_IMAGES = 4


@dataclass(frozen=True)
class Comparison:
    """One engine or file held to the reference.

    Args:
        name: the engine, or the file and what ran it.
        verdict: ``equal``; ``differs``; ``refused`` (it says itself that it would be wrong); ``absent`` (not installed).
        values: output values compared.
        differing_values: how many of them differ.
        voxels: mask voxels compared.
        differing_voxels: how many of them differ.
        reason: why it was refused or is absent, otherwise "".
    """

    name: str
    verdict: str
    values: int = 0
    differing_values: int = 0
    voxels: int = 0
    differing_voxels: int = 0
    reason: str = ""


class Tally:
    """Counts differences between the reference and one other over many images.

    Args:
        name: of the other.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.values = self.differing_values = self.voxels = self.differing_voxels = 0

    def add(self, expected: Expected, values: NDArray[np.int32], mask: NDArray[np.uint8]) -> None:
        """Output integers (N, O, *S) and masks (N, *S) of one image; another shape counts as a difference everywhere."""
        self.values += expected.values.size
        self.voxels += expected.mask.size
        self.differing_values += _differing(expected.values, values)
        self.differing_voxels += _differing(expected.mask, mask)

    def comparison(self) -> Comparison:
        """What was counted."""
        equal = not self.differing_values and not self.differing_voxels
        return Comparison(
            self.name, "equal" if equal else "differs", self.values, self.differing_values, self.voxels, self.differing_voxels
        )


@dataclass(frozen=True)
class Expected:
    """What the reference makes of an image.

    Args:
        image: normalised, float32 (N, C, *S), as a network is given it.
        quantized: uint8 (N, C, *S).
        values: output integers (N, O, *S).
        mask: class numbers (N, *S).
    """

    image: NDArray[np.float32]
    quantized: NDArray[np.uint8]
    values: NDArray[np.int32]
    mask: NDArray[np.uint8]


def run_reference(program: IntegerProgram, images: Iterable[NDArray[np.float32]]) -> list[Expected]:
    """Run normalised images (N, C, *S), of sizes the network takes, through the reference."""
    reference = ReferenceEngine(program)
    found = []
    for image in images:
        quantized = quantize_image(image, program.format_of(program.image.name))
        values = reference.run(quantized)
        found.append(Expected(image, quantized, values, decide(values, program)))
    return found


def compare_engines(program: IntegerProgram, expected: Sequence[Expected]) -> list[Comparison]:
    """Run images through every engine that is registered; the reference itself is left out."""
    found = []
    for name, engine in ENGINES.items():
        if engine is ReferenceEngine:
            continue
        reason = engine.unavailable()
        if reason is not None:
            found.append(Comparison(name, "absent", reason=reason))
            continue
        try:
            opened = engine(program)
        except EngineMismatchError as error:
            found.append(Comparison(name, "refused", reason=str(error)))
            continue
        tally = Tally(name)
        for each in expected:
            # Masks as predictors get them: an engine may decide in its own way.
            tally.add(each, opened.run(each.quantized), opened.run_decided(each.quantized))
        found.append(tally.comparison())
    return found


def compare_file(path: Path, expected: Sequence[Expected]) -> list[Comparison]:
    """Run images through an exported file in every runtime that reads such files, as its vendor made it.

    Raises:
        UsageError: it is no exported file by its ending, or does not exist.
        CheckpointError: no runtime can read it.
    """
    found = []
    for runtime in runtimes_for(path):
        name = f"{path.name} in {runtime.name}"
        if runtime.absent():
            found.append(Comparison(name, "absent", reason=f"{runtime.package} is not installed"))
            continue
        opened = runtime.open(path)
        tally = Tally(name)
        try:
            for each in expected:
                values, mask = opened(each.image)
                tally.add(each, values, mask)
        except Exception as error:
            # A runtime refuses images of another kind than its file takes with errors of its own.
            found.append(Comparison(name, "differs", reason=f"does not take the model's images ({first_line(error)})"))
            continue
        found.append(tally.comparison())
    return found


def random_images(program: IntegerProgram, size_multiple: int, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """Normalised images that reach every corner of a program: noise, smooth fields, ties of its first rounding, nothing, everything.

    They have sizes the network takes, odd multiples of ``size_multiple`` among them.
    """
    generator = np.random.default_rng(seed)
    read = program.format_of(program.image.name)
    for levels in _levels(program, size_multiple, generator):
        yield ((levels - read.zero_point) * 2.0**-read.exponent).astype(np.float32)


def _levels(program: IntegerProgram, size_multiple: int, generator: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Images in units of the first quantizer's step; halves are ties."""
    axes, channels = program.dimensions, program.image.channels
    highest = program.format_of(program.image.name).highest
    sides = [-(-side // size_multiple) * size_multiple for side in _SIDES[axes]]
    for number, size in zip(range(_IMAGES), product(sides, repeat=axes), strict=False):
        shape = (1 + number % 2, channels, *size)
        noise: NDArray[np.float64] = generator.uniform(-0.1 * highest, 1.1 * highest, shape)
        yield noise
        yield _smooth(generator, shape, highest)
    shape = (1, channels, *[sides[0]] * axes)
    yield generator.integers(-1, highest + 1, shape).astype(np.float64) + 0.5
    yield np.zeros(shape)
    yield np.full(shape, float(highest))


def _differing(expected: NDArray[np.generic], found: NDArray[np.generic]) -> int:
    return int((expected != found).sum()) if expected.shape == found.shape else expected.size


def _smooth(generator: np.random.Generator, shape: tuple[int, ...], highest: int) -> NDArray[np.float64]:
    """Waves along every axis: like an image, near its neighbours everywhere."""
    total = np.zeros(shape)
    for axis in range(2, len(shape)):
        wave = np.sin(np.arange(shape[axis]) * generator.uniform(0.05, 0.5) + generator.uniform(0, 6))
        total += wave.reshape(-1, *[1] * (len(shape) - 1 - axis))
    low, high = total.min(), total.max()
    scaled: NDArray[np.float64] = (total - low) / max(high - low, 1e-9) * highest
    return scaled
