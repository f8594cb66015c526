"""The format page: its numbers are those of the code, and its worked file is a real one."""

from __future__ import annotations

import numpy as np

import nifcore
from nifcore.bitstream import unpack
from nifcore.header import (
    EXTENSION_COMMENT,
    EXTENSION_ICC_PROFILE,
    FIRST_CRITICAL_EXTENSION,
    MAGIC,
    VERSIONS,
    Colour,
    EntropyModel,
    LatticeKind,
)
from tests.nifcore.reference_decoder import decode_file
from tests.nifcore.worked_example import HEADER, PAGE, SYMBOLS, example, fill

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_page_shows_the_numbers_of_the_code() -> None:
    assert fill(TEXT) == TEXT, "run: python -m tests.nifcore.worked_example"


def test_ids_are_those_of_the_page() -> None:
    assert MAGIC.hex(" ").upper() in TEXT
    assert "1 grey, 2 grey and alpha, 3 sRGB, 4 sRGB and alpha" in TEXT
    assert [c.value for c in Colour] == [1, 2, 3, 4]
    assert [c.name for c in Colour] == ["GREY", "GREY_ALPHA", "SRGB", "SRGB_ALPHA"]
    assert (LatticeKind.UNIFORM, LatticeKind.PUBLISHED) == (0, 1)
    assert (EntropyModel.ADAPTIVE, EntropyModel.ORDERED) == (0, 1)
    assert VERSIONS == (1, 2)
    assert (EXTENSION_ICC_PROFILE, EXTENSION_COMMENT, FIRST_CRITICAL_EXTENSION) == (1, 2, 128)


def test_the_worked_file_says_what_the_page_says() -> None:
    data = example()
    header, (tensors,) = unpack(data)
    assert header == HEADER
    for tensor, (index, symbols) in zip(tensors, SYMBOLS, strict=True):
        assert tensor.step.index == index  # type: ignore[union-attr]
        assert tensor.symbols.tolist() == symbols
    trace = decode_file(data).trace
    assert any(t.symbol == -300 for t in trace), "an escape is shown"
    pixels = np.array(decode_file(data).render(), dtype=np.int16)[:, :, 0]
    found = np.asarray(nifcore.decode(data, device="cpu"), dtype=np.int16)
    assert np.abs(found - pixels).max() <= 1
