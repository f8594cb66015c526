"""Files of the paper's own encoder, rewritten as .nif files with the very same weights.

The public reference encoder (https://github.com/aegroto/nif) writes a pickled dictionary::

    "head.weight"           -> brotli-compressed int8 symbols, row by row      Genesis, first layer
    "body.N.weight"         -> ...                                             its other hidden ones
    "tail.weight"           -> ...                                             its output layer
    "modulator.head.weight", "modulator.hidden_layers.N.weight", "modulator.tail.weight"
    (and a bias for every weight)
    "quantization_config"   -> name -> {"bits": 2 to 8, "bound": largest magnitude}
    "__meta"                -> {"width": pixels, "height": pixels}

What the layers are is not in the file but in the YAML configuration that it was made with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import brotli
import numpy as np
import yaml
from numpy.typing import NDArray

from nifcore.bitstream import pack
from nifcore.errors import CorruptBitstream, LimitExceeded, UsageError
from nifcore.header import MAGIC, Colour, Header, LatticeKind, NetShape
from nifcore.limits import Limits
from nifcore.plainpickle import read_plain_pickle
from nifcore.tensors import PublishedStep, QuantisedTensor

_MAX_CONFIG_BYTES = 1 << 14

# What the reference encoder assumes where a configuration is silent.
_HIDDEN_SIZES = (120, 40, 28, 16)
_FREQUENCIES = 16
_MODULATION_HIDDEN_SIZES = (16, 8)
_MODULATION_FREQUENCIES = 4
_SCALE = 1.4
_OMEGA = 30.0
_SIGMA = 10.0

_CHANNELS = 3

_MODEL_KEYS = {"hidden_sizes", "encoder_params", "modulator_params", "omega", "c"}
_ENCODER_KEYS = {"num_frequencies", "scale", "use_cache", "use_nyquist", "sidelength"}
_MODULATOR_KEYS = {
    "hidden_sizes",
    "encoder_params",
    "omega",
    "sigma",
    "output_features",
    "disabled",
}


@dataclass(frozen=True)
class _Networks:
    """What a configuration says about the decoder."""

    genesis: NetShape
    modulation: NetShape | None
    base: float
    omega: float
    sigma: float


def import_published(
    data: bytes,
    config: str | bytes | Mapping[str, Any],
    limits: Limits | None = None,
) -> bytes:
    """Rewrite a file of the published encoder in our format, weight for weight.

    The file is read by an interpreter of its own that executes nothing. Our decoder rounds to the
    nearest level where the published one truncates, so pixels differ by up to 1/255.

    Args:
        data: the published file.
        config: the configuration it was made with: YAML text, or the mapping it describes. Only
            ``model`` matters; what it leaves out has the reference encoder's default.
        limits: upper bounds; None means the defaults.

    Returns:
        A .nif file of format version 1 with the published lattice.

    Raises:
        CorruptBitstream: no published file, damaged, or not made with this configuration.
        LimitExceeded: larger than the limits allow.
        UsageError: a configuration that cannot be read or that our format cannot express, or data
            that is a .nif file already.
    """
    limits = limits or Limits()
    if data.startswith(MAGIC):
        raise UsageError("the data is a .nif file of our format already; nothing to import")
    if len(data) > limits.max_file_bytes:
        raise LimitExceeded(
            f"the file has {len(data):,} bytes; at most {limits.max_file_bytes:,} are accepted"
        )
    networks = _read_config(config)
    content = read_plain_pickle(data)
    if not isinstance(content, dict):
        raise CorruptBitstream(f"the file holds a {type(content).__name__}; expected a dictionary")
    width, height = _read_size(content, limits)
    header = Header(
        width=width,
        height=height,
        colour=Colour.SRGB,
        genesis=networks.genesis,
        modulation=networks.modulation,
        base=networks.base,
        omega=networks.omega,
        sigma=networks.sigma,
        lattice=LatticeKind.PUBLISHED,
    )
    if header.parameters > limits.max_parameters:
        raise LimitExceeded(
            f"the networks have {header.parameters:,} weights; at most "
            f"{limits.max_parameters:,} are accepted"
        )
    return pack(header, [_read_tensors(content, networks)])


# --- the file ----------------------------------------------------------------------------------


def _dictionary(content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise CorruptBitstream(f"{key!r} is missing or no dictionary: no published file")
    return value


def _read_size(content: dict[str, Any], limits: Limits) -> tuple[int, int]:
    meta = _dictionary(content, "__meta")
    sides = []
    for key in ("width", "height"):
        side = meta.get(key)
        if not isinstance(side, int) or side < 1:
            raise CorruptBitstream(f"{key} is {side!r:.60}; expected a positive integer")
        sides.append(side)
    width, height = sides
    if max(sides) > limits.max_side or width * height > limits.max_pixels:
        raise LimitExceeded(
            f"the picture is {width}x{height}; at most {limits.max_side:,} pixels per side and "
            f"{limits.max_pixels:,} in all are accepted"
        )
    return width, height


def _read_tensors(content: dict[str, Any], networks: _Networks) -> list[QuantisedTensor]:
    shapes = _named_shapes(networks)
    steps = _dictionary(content, "quantization_config")
    unknown = content.keys() - shapes.keys() - {"__meta", "quantization_config"}
    if unknown:
        raise CorruptBitstream(
            f"the file has a tensor {min(unknown)!r:.60} that the configuration's networks have "
            f"not ({_described(networks)}); is it the right configuration?"
        )
    return [
        _read_tensor(name, shape, content.get(name), steps.get(name), networks)
        for name, shape in shapes.items()
    ]


def _named_shapes(networks: _Networks) -> dict[str, tuple[int, ...]]:
    """Return the published name and the shape of every tensor, in the order of our format."""
    shapes: dict[str, tuple[int, ...]] = {}
    for net, prefix, hidden, outputs in (
        (networks.genesis, "", "body", _CHANNELS),
        (networks.modulation, "modulator.", "hidden_layers", 1),
    ):
        if net is None:
            continue
        layers = len(net.hidden) + 1
        names = ["head", *(f"{hidden}.{n}" for n in range(layers - 2)), "tail"]
        for name, (fan_in, fan_out) in zip(
            names, pairwise((net.inputs, *net.hidden, outputs)), strict=True
        ):
            shapes[f"{prefix}{name}.weight"] = (fan_out, fan_in)
            shapes[f"{prefix}{name}.bias"] = (fan_out,)
    return shapes


def _described(networks: _Networks) -> str:
    text = f"{networks.genesis.frequencies} frequencies, {list(networks.genesis.hidden)}"
    if networks.modulation is None:
        return text + ", no modulation"
    other = networks.modulation
    return text + f"; modulation {other.frequencies} frequencies, {list(other.hidden)}"


def _read_tensor(
    name: str, shape: tuple[int, ...], packed: object, quantisation: object, networks: _Networks
) -> QuantisedTensor:
    if not isinstance(packed, bytes) or not isinstance(quantisation, dict):
        raise CorruptBitstream(
            f"tensor {name!r} or its quantisation is missing; the configuration's networks "
            f"need it ({_described(networks)})"
        )
    expected = " x ".join(str(side) for side in shape)
    symbols = np.frombuffer(_decompressed(name, packed, math.prod(shape), expected), np.int8)
    step = _read_step(name, quantisation)
    try:
        return QuantisedTensor(_matrix(symbols, shape), step)
    except UsageError as error:
        raise CorruptBitstream(f"tensor {name!r}: {error}") from error


def _matrix(symbols: NDArray[np.int8], shape: tuple[int, ...]) -> NDArray[np.int32]:
    return symbols.astype(np.int32).reshape(shape)  # (out, in) or (out,)


def _decompressed(name: str, packed: bytes, size: int, expected: str) -> bytes:
    """Decompress one tensor; a file that would give more than ``size`` bytes is not followed."""
    decompressor = brotli.Decompressor()
    try:
        data = decompressor.process(packed, output_buffer_limit=size + 1)
        while len(data) <= size and not decompressor.is_finished():
            more = decompressor.process(b"", output_buffer_limit=size + 1 - len(data))
            if not more:
                break
            data += more
    except brotli.error as error:
        raise CorruptBitstream(f"tensor {name!r} is damaged: {error}") from error
    if len(data) != size:
        found = "more" if len(data) > size else f"{len(data):,}"
        raise CorruptBitstream(
            f"tensor {name!r} has {found} values; the configuration needs {expected} = {size:,}"
        )
    if not decompressor.is_finished():
        raise CorruptBitstream(f"tensor {name!r} is truncated")
    return bytes(data)


def _read_step(name: str, quantisation: dict[str, Any]) -> PublishedStep:
    bits, bound = quantisation.get("bits"), quantisation.get("bound")
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise CorruptBitstream(f"tensor {name!r} has {bits!r:.60} bits; 2 to 8 is accepted")
    if not isinstance(bound, int | float) or not 0 <= bound <= float(np.finfo(np.float16).max):
        raise CorruptBitstream(
            f"tensor {name!r} has the bound {bound!r:.60}; a finite half above 0 is accepted"
        )
    # The reference rounds twice, to single and then to half precision.
    half = np.float32(bound).astype(np.float16)
    return PublishedStep(bits, int(half.view(np.uint16)))


# --- the configuration -------------------------------------------------------------------------


def _read_config(config: str | bytes | Mapping[str, Any]) -> _Networks:
    if isinstance(config, str | bytes):
        config = _parsed(config)
    model = _section(config, "model", None)
    _check_keys(model, "model", _MODEL_KEYS)
    encoder = _section(model, "encoder_params", "model")
    _check_keys(encoder, "model.encoder_params", _ENCODER_KEYS)
    genesis = NetShape(
        _sizes(model, "model.hidden_sizes", _HIDDEN_SIZES),
        _whole(encoder, "model.encoder_params.num_frequencies", _FREQUENCIES),
    )
    base = _number(encoder, "model.encoder_params.scale", _SCALE)
    omega = _number(model, "model.omega", _OMEGA)
    place = "model.modulator_params"
    modulator = _section(model, "modulator_params", "model")
    _check_keys(modulator, place, _MODULATOR_KEYS)
    sigma = _number(modulator, f"{place}.sigma", _SIGMA)
    if modulator.get("disabled", False):
        return _Networks(genesis, None, base, omega, _SIGMA)
    encoder = _section(modulator, "encoder_params", place)
    _check_keys(encoder, f"{place}.encoder_params", _ENCODER_KEYS)
    _must_equal(_number(encoder, f"{place}.encoder_params.scale", _SCALE), base, "encoder scales")
    _must_equal(_number(modulator, f"{place}.omega", _OMEGA), omega, "omegas")
    if _whole(modulator, f"{place}.output_features", 1) != 1:
        raise UsageError(f"{place}.output_features is not 1; our format has one period shift")
    modulation = NetShape(
        _sizes(modulator, f"{place}.hidden_sizes", _MODULATION_HIDDEN_SIZES),
        _whole(encoder, f"{place}.encoder_params.num_frequencies", _MODULATION_FREQUENCIES),
    )
    return _Networks(genesis, modulation, base, omega, sigma)


def _parsed(text: str | bytes) -> Mapping[str, Any]:
    if len(text) > _MAX_CONFIG_BYTES:
        raise LimitExceeded(
            f"the configuration has {len(text):,} bytes; at most {_MAX_CONFIG_BYTES:,} are accepted"
        )
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"the configuration is no readable YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise UsageError(
            f"the configuration is a {type(content).__name__}; accepted: a mapping with 'model'"
        )
    return content


def _section(parent: Mapping[str, Any], key: str, place: str | None) -> Mapping[str, Any]:
    value = parent.get(key)
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        name = f"{place}.{key}" if place else key
        raise UsageError(f"{name} is {value!r:.60}; accepted: a mapping")
    return value


def _check_keys(section: Mapping[str, Any], place: str, known: set[str]) -> None:
    unknown = sorted(str(key) for key in section.keys() - known)
    if unknown:
        raise UsageError(f"{place}.{unknown[0]} is unknown; accepted: {', '.join(sorted(known))}")


def _sizes(section: Mapping[str, Any], place: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = section.get(place.rsplit(".", 1)[1], default)
    if not isinstance(value, list | tuple) or not all(_is_whole(size) for size in value):
        raise UsageError(f"{place} is {value!r:.60}; accepted: a list of integers")
    return tuple(value)


def _whole(section: Mapping[str, Any], place: str, default: int) -> int:
    value = section.get(place.rsplit(".", 1)[1], default)
    if not _is_whole(value):
        raise UsageError(f"{place} is {value!r:.60}; accepted: an integer")
    return int(value)


def _number(section: Mapping[str, Any], place: str, default: float) -> float:
    value = section.get(place.rsplit(".", 1)[1], default)
    if not _is_whole(value) and not isinstance(value, float):
        raise UsageError(f"{place} is {value!r:.60}; accepted: a number")
    return float(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _must_equal(modulation: float, genesis: float, what: str) -> None:
    if modulation != genesis:
        raise UsageError(
            f"the two networks have different {what}, {genesis:g} and {modulation:g}; our format "
            "has one for both"
        )
