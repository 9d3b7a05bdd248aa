"""Model files whose digest is right and whose content is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packed_files import forged, header_text, refused, relu, setter, with_header_text

from medquant.deploy.header import Header


def test_the_forger_itself_changes_nothing(tiny_file: bytes) -> None:
    assert forged(tiny_file, lambda header: None) == tiny_file


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "unknown kind": (setter("nodes", 1, "kind", value="python"), "kind"),
    "unknown field of a node": (setter("nodes", 1, "hook", value="os.system"), "hook: Extra inputs"),
    "unknown field of the file": (setter("code", value="print(1)"), "code: Extra inputs"),
    "unknown field of the metadata": (setter("metadata", "_target_", value="os.system"), "_target_: Extra inputs"),
    "number as text": (setter("nodes", 1, "weight_bits", value="5"), "weight_bits: Input should be a valid integer"),
    "no nodes": (setter("nodes", value=[]), "expected weight, bias and exponents"),
    "two images": (lambda h: h["nodes"].insert(1, {**h["nodes"][0], "name": "second"}), "has only one"),
    "two of one name": (lambda h: h["nodes"].insert(1, relu("image", "image")), "two nodes are called"),
    "reads itself": (lambda h: h["nodes"].insert(1, relu("loop", "loop")), "which nothing before it writes"),
    "moves into another format": (lambda h: h["nodes"].insert(1, relu("relu", "image", exponent=4)), "into another format"),
    "channels that do not fit": (setter("nodes", 0, "channels", value=2), "reads 1 channels, found 2"),
    "a zero point beyond the width": (setter("nodes", 0, "output", "zero_point", value=256), "zero_point"),
    "a stride of zero": (setter("nodes", 1, "geometry", "stride", value=[0, 1]), "stride"),
    "three axes": (setter("nodes", 1, "geometry", "stride", value=[1, 1, 1]), "do not fit 3 strides"),
    "groups": (setter("nodes", 1, "geometry", "groups", value=2), "in 2 group"),
    "other output exponents": (setter("output_exponents", value=[3, 4]), "exponents are"),
    "a network that ends early": (lambda h: h["nodes"].append(relu("late", "head")), "writes accumulators"),
    "a tensor of nobody": (lambda h: h["tensors"].append(h["tensors"][-1]), "found 4 tensors"),
    "a tensor missing": (lambda h: h["tensors"].pop(), "found 2 tensors"),
    "a huge tensor": (setter("tensors", 0, 3, value=[2**30, 2**30]), "expected 720575940379279360 at 0"),
    "a huge shape": (setter("tensors", 0, 3, value=[2**60]), "tensors.0.3.0: "),
    "a tensor beyond the end": (setter("tensors", 2, 4, value=2**50), f"bytes at {2**50}, expected"),
    "tensors over each other": (setter("tensors", 1, 4, value=0), "bytes at 0, expected 4 at 64"),
    "a negative offset": (setter("tensors", 0, 4, value=-64), "tensors.0.4: "),
    "another width": (setter("tensors", 0, 2, value=4), "expected weight, bias and exponents"),
    "another shape": (setter("tensors", 0, 3, value=[3, 3, 1, 1]), "does not fit together"),
    "another digest": (setter("tensors", 1, 6, value="A" * 43), "tensor head bias: found other bytes"),
    "no positive class": (setter("metadata", "positive_class", value=None), "names no positive class"),
    "a positive class of no name": (setter("metadata", "positive_class", value=5), "must be among classes"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_are_refused(name: str, tiny_file: bytes, tmp_path: Path) -> None:
    change, message = FORGERIES[name]
    refused(tmp_path / "m.mq", forged(tiny_file, change), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[" * 100_000, "recursion limit"),
        (b"null", "header"),
        (b"{}", "and 1 more"),
    ],
)
def test_headers_that_are_no_header_are_refused(text: bytes, message: str, tiny_file: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "m.mq", with_header_text(tiny_file, text), message)


def test_another_spelling_of_the_header_is_refused(tiny_file: bytes, tmp_path: Path) -> None:
    text = header_text(tiny_file)
    Header.model_validate_json(text.replace(b'"licence":', b'"licence":"","licence":'))  # a parser alone does not mind
    for other in (text + b" ", text.replace(b'"licence":', b'"licence":"","licence":'), text.replace(b":", b": ", 1)):
        refused(tmp_path / "m.mq", with_header_text(tiny_file, other), "another spelling")
