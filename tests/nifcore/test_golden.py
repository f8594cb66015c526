"""Golden files: exact bytes, exact weights, pixels within 1 of 255, for ever."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

import nifcore
from nifcore.bitstream import pack, unpack
from tests.golden.catalogue import FOLDER, read_index, symbols_sha256
from tests.golden.synthetic import HEADERS, tiles_of
from tests.nifcore import reference_decoder

INDEX = read_index()


def test_every_file_is_listed_and_every_listed_file_is_there() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.nif")) == sorted(INDEX)
    assert set(HEADERS) <= set(INDEX)


@pytest.mark.parametrize("name", sorted(INDEX))
def test_weights_are_those_of_the_first_day(name: str) -> None:
    data = (FOLDER / f"{name}.nif").read_bytes()
    assert hashlib.sha256(data).hexdigest() == INDEX[name]["sha256"]
    header, tiles = unpack(data)
    assert symbols_sha256(tiles) == INDEX[name]["symbols_sha256"]
    assert pack(header, tiles) == data


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_synthetic_files_come_from_their_rule(name: str) -> None:
    header = HEADERS[name]
    assert pack(header, tiles_of(name, header)) == (FOLDER / f"{name}.nif").read_bytes()


@pytest.mark.parametrize("name", sorted(INDEX))
def test_a_decoder_written_from_the_page_agrees(name: str) -> None:
    data = (FOLDER / f"{name}.nif").read_bytes()
    _, tiles = unpack(data)
    decoded = reference_decoder.decode_file(data)
    assert len(decoded.symbols) == len(tiles)
    for symbols, weights, tensors in zip(decoded.symbols, decoded.weights, tiles, strict=True):
        for rows, values, tensor in zip(symbols, weights, tensors, strict=True):
            assert tensor.symbols.reshape(len(rows), -1).tolist() == rows
            assert tensor.values().reshape(len(rows), -1).tolist() == values


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.png")))
def test_pixels_are_those_of_the_first_day(name: str) -> None:
    found = np.asarray(nifcore.decode(FOLDER / f"{name}.nif", device="cpu"), dtype=np.int16)
    with Image.open(FOLDER / f"{name}.png") as image:
        expected = np.asarray(image, dtype=np.int16)
    assert found.shape == expected.shape
    assert np.ptp(expected) > 50, "a picture that shows something"
    assert np.abs(found - expected).max() <= 1
