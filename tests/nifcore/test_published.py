"""Published files: against a forward pass written here, and against the reference's own pixels."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

import nifcore
from nifcore.bitstream import unpack
from nifcore.errors import CorruptBitstream, LimitExceeded, NifError, UsageError
from nifcore.header import Colour, LatticeKind, NetShape
from nifcore.limits import Limits
from nifcore.published import import_published

REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "reference"

Weights = dict[str, NDArray[np.float64]]
Content = dict[str, Any]

CONFIG = {
    "model": {
        "hidden_sizes": [12, 9, 7],
        "encoder_params": {"num_frequencies": 5, "use_cache": False},
        "modulator_params": {"hidden_sizes": [6, 4], "encoder_params": {"num_frequencies": 2}},
    },
    "fitting": {"tuning": {"patching": 2}},
}

# Written out rather than derived, as the file's contract is these very names.
SHAPES: dict[str, tuple[int, ...]] = {
    "head.weight": (12, 22),
    "head.bias": (12,),
    "body.0.weight": (9, 12),
    "body.0.bias": (9,),
    "body.1.weight": (7, 9),
    "body.1.bias": (7,),
    "tail.weight": (3, 7),
    "tail.bias": (3,),
    "modulator.head.weight": (6, 10),
    "modulator.head.bias": (6,),
    "modulator.hidden_layers.0.weight": (4, 6),
    "modulator.hidden_layers.0.bias": (4,),
    "modulator.tail.weight": (1, 4),
    "modulator.tail.bias": (1,),
}


def published(bits: int = 8, seed: int = 0, names: dict[str, Any] = SHAPES) -> Content:
    """What the published encoder pickles, with random weights."""
    random = np.random.default_rng(seed)
    most = 2 ** (bits - 1) - 1
    content: Content = {"quantization_config": {}}
    for name, shape in names.items():
        symbols = random.integers(-most, most + 1, shape).astype(np.int8)
        content[name] = brotli.compress(symbols.tobytes())
        bound = float(np.float32(random.uniform(0.02, 0.4)))
        content["quantization_config"][name] = {"bits": bits, "bound": bound}
    content["__meta"] = {"width": 33, "height": 21}
    return content


def without_modulation() -> dict[str, Any]:
    return {name: shape for name, shape in SHAPES.items() if not name.startswith("modulator")}


def reference_weights(content: Content, shapes: dict[str, tuple[int, ...]]) -> Weights:
    """Undo the published quantisation: every step in half precision, as torch does it."""
    weights = {}
    for name, shape in shapes.items():
        scale = content["quantization_config"][name]
        symbols = np.frombuffer(brotli.decompress(content[name]), np.int8).reshape(shape)
        normalised = symbols.astype(np.float16) / np.float16(2 ** (scale["bits"] - 1) - 1)
        weights[name] = (normalised * np.float16(scale["bound"])).astype(np.float64)
    return weights


def encoding(rows: int, columns: int, frequencies: int, base: float) -> NDArray[np.float64]:
    y = 2 * np.arange(rows)[:, None] / (rows - 1) - 1 + np.zeros((1, columns))
    x = 2 * np.arange(columns)[None, :] / (columns - 1) - 1 + np.zeros((rows, 1))
    features = [y, x]
    for i in range(frequencies):
        for coordinate in (y, x):
            features += [f(base**i * np.pi * coordinate) for f in (np.sin, np.cos)]
    return np.stack(features, axis=-1)


def rendered(
    weights: Weights, rows: int, columns: int, frequencies: tuple[int, int],
    base: float = 1.4, omega: float = 30.0, sigma: float = 10.0,
) -> NDArray[np.float64]:  # fmt: skip
    """The paper's decoder in double precision; levels 0 to 255, not rounded."""

    def layer(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    period: Any = omega
    if "modulator.head.weight" in weights:
        values = encoding(rows, columns, frequencies[1], base)
        values = np.sin(omega * layer("modulator.head", values))
        n = 0
        while f"modulator.hidden_layers.{n}.weight" in weights:
            values = np.sin(omega * layer(f"modulator.hidden_layers.{n}", values))
            n += 1
        period = omega + sigma * layer("modulator.tail", values)
    values = np.sin(period * layer("head", encoding(rows, columns, frequencies[0], base)))
    n = 0
    while f"body.{n}.weight" in weights:
        values = np.sin(period * layer(f"body.{n}", values))
        n += 1
    return np.clip((layer("tail", values) + 1) / 2, 0, 1) * 255


def unpacked(data: bytes, names: dict[str, Any]) -> Weights:
    _, (tensors,) = unpack(data, Limits())
    values = [tensor.values().astype(np.float64) for tensor in tensors]
    assert len(values) == len(names)
    return dict(zip(names, values, strict=True))


# --- what is imported --------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_weight_is_exactly_the_published_one(bits: int) -> None:
    content = published(bits, seed=bits)
    data = import_published(pickle.dumps(content, protocol=4), CONFIG)
    header, _ = unpack(data, Limits())
    assert (header.width, header.height, header.colour) == (33, 21, Colour.SRGB)
    assert header.lattice is LatticeKind.PUBLISHED
    assert header.genesis == NetShape((12, 9, 7), 5)
    assert header.modulation == NetShape((6, 4), 2)
    assert (header.base, header.omega, header.sigma) == (1.4, 30.0, 10.0)
    expected = reference_weights(content, SHAPES)
    for name, values in unpacked(data, SHAPES).items():
        assert np.array_equal(values, expected[name]), name


def test_the_pixels_are_those_of_the_papers_formulas() -> None:
    content = published()
    # Keep the output within the range that is not clamped.
    content["quantization_config"]["tail.weight"]["bound"] = 0.15
    data = import_published(pickle.dumps(content, protocol=4), CONFIG)
    expected = rendered(reference_weights(content, SHAPES), 21, 33, (5, 2))
    assert expected.std() > 10
    decoded = np.asarray(nifcore.decode(data))
    # Half a level of rounding, and single precision in the sines of large random phases.
    assert np.abs(decoded - expected).max() <= 1
    assert np.abs(decoded - expected).mean() < 0.27


def test_the_configuration_may_be_text_bytes_or_a_mapping() -> None:
    data = pickle.dumps(published(), protocol=4)
    text = yaml.safe_dump(CONFIG)
    expected = import_published(data, CONFIG)
    assert import_published(data, text) == import_published(data, text.encode()) == expected


def test_constants_come_from_the_configuration() -> None:
    config = {
        "model": {
            "hidden_sizes": [12, 9, 7],
            "omega": 25,
            "c": 6.0,
            "encoder_params": {"num_frequencies": 5, "scale": 1.25},
            "modulator_params": {
                "hidden_sizes": [6, 4],
                "encoder_params": {"num_frequencies": 2, "scale": 1.25},
                "omega": 25.0,
                "sigma": 7.5,
            },
        }
    }
    header, _ = unpack(import_published(pickle.dumps(published(), protocol=4), config), Limits())
    assert (header.base, header.omega, header.sigma) == (1.25, 25.0, 7.5)


def test_modulation_can_be_switched_off() -> None:
    names = without_modulation()
    config = {"model": {**CONFIG["model"], "modulator_params": {"disabled": True}}}
    data = import_published(pickle.dumps(published(names=names), protocol=4), config)
    header, _ = unpack(data, Limits())
    assert header.modulation is None
    expected = reference_weights(published(names=names), names)
    assert all(np.array_equal(v, expected[k]) for k, v in unpacked(data, names).items())


def test_what_the_configuration_leaves_out_has_the_reference_encoders_default() -> None:
    sizes = [66, 120, 40, 28, 16, 3]
    layers = ["head", "body.0", "body.1", "body.2", "tail"]
    others, inner = [18, 16, 8, 1], ["head", "hidden_layers.0", "tail"]
    names: dict[str, tuple[int, ...]] = {}
    for i, layer in enumerate(layers):
        names[f"{layer}.weight"], names[f"{layer}.bias"] = (sizes[i + 1], sizes[i]), (sizes[i + 1],)
    for i, layer in enumerate(inner):
        names[f"modulator.{layer}.weight"] = (others[i + 1], others[i])
        names[f"modulator.{layer}.bias"] = (others[i + 1],)
    content = published(names=names)
    data = pickle.dumps(content, protocol=4)
    expected = reference_weights(content, names)
    for config in ("model:", "model: {}", {}, "fitting: {steps: 5}"):
        weights = unpacked(import_published(data, config), names)
        assert all(np.array_equal(weights[name], expected[name]) for name in names)


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference encoder's files are not here")
def test_a_file_of_the_reference_encoder_shows_its_own_pixels(
    record_property: Any,
) -> None:
    data = (REFERENCE / "kodim03_x2.nif").read_bytes()
    ours = import_published(data, (REFERENCE / "kodim03_x2.yaml").read_bytes())
    assert len(ours) < len(data)
    content = pickle.loads(data)
    names: dict[str, tuple[int, ...]] = {}
    header, (tensors,) = unpack(ours, Limits())
    order = [
        "head", "body.0", "body.1", "body.2", "tail", "modulator.head",
        "modulator.hidden_layers.0", "modulator.hidden_layers.1", "modulator.tail",
    ]  # fmt: skip
    parts = [f"{layer}.{part}" for layer in order for part in ("weight", "bias")]
    for name, tensor in zip(parts, tensors, strict=True):
        names[name] = tensor.symbols.shape
    weights = unpacked(ours, names)
    expected = reference_weights(content, names)
    assert all(np.array_equal(weights[name], expected[name]) for name in names)

    pixels = rendered(weights, header.height, header.width, (16, 4))
    with Image.open(REFERENCE / "kodim03_x2_decoded.png") as image:
        shown = np.asarray(image.convert("RGB")).astype(int)
    truncated, rounded = np.floor(pixels), np.round(pixels)
    for name, levels in (("truncated", truncated), ("rounded", rounded)):
        difference = np.abs(levels - shown)
        record_property(f"{name}_max", float(difference.max()))
        record_property(f"{name}_share_that_differs", float((difference > 0).mean()))
        assert difference.max() <= 1
    assert (truncated != shown).mean() < 0.001
    decoded = np.asarray(nifcore.decode(ours)).astype(int)
    assert np.abs(decoded - shown).max() <= 2


# --- what is refused ---------------------------------------------------------------------------


def changed(**changes: Any) -> bytes:
    content = published()
    for path, value in changes.items():
        *parents, key = path.split("__")
        target = content
        for parent in parents:
            target = target[{"meta": "__meta", "steps": "quantization_config"}.get(parent, parent)]
        key = key.replace("_", ".")
        if value is None:
            del target[key]
        else:
            target[key] = value
    return pickle.dumps(content, protocol=4)


SMALL = brotli.compress(bytes(8))
LARGE = brotli.compress(bytes(2000))
BOMB = brotli.compress(bytes(200_000_000), quality=1)
NINE = {"bits": 9, "bound": 0.1}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (changed(body_0_bias=SMALL), r"'body\.0\.bias' has 8 values; .* needs 9 = 9"),
        (changed(body_0_weight=SMALL), r"'body\.0\.weight' has 8 values; .* needs 9 x 12 = 108"),
        (changed(tail_weight=LARGE), r"'tail\.weight' has more values; .* 3 x 7 = 21"),
        (changed(tail_weight=BOMB), r"'tail\.weight' has more values"),
        (changed(tail_weight=LARGE[:-2]), r"'tail\.weight' has"),
        (changed(tail_weight=b"not brotli at all"), r"'tail\.weight' (is damaged|has)"),
        (changed(tail_weight=b""), r"'tail\.weight' has 0 values"),
        (changed(tail_weight="text"), r"'tail\.weight' or its quantisation is missing"),
        (changed(tail_bias=None), r"'tail\.bias' or its quantisation is missing"),
        (changed(steps__tail_bias=None), r"'tail\.bias' or its quantisation is missing"),
        (changed(body_2_weight=SMALL), r"'body\.2\.weight' .*right configuration"),
        (changed(steps__tail_bias=NINE), r"'tail\.bias' has 9 bits; 2 to 8"),
        (changed(steps__tail_bias={"bits": 1, "bound": 0.1}), "has 1 bits"),
        (changed(steps__tail_bias={"bits": 8.0, "bound": 0.1}), r"has 8\.0 bits"),
        (changed(steps__tail_bias={"bits": 8}), "has the bound None"),
        (changed(steps__tail_bias={"bits": 8, "bound": -0.1}), r"bound -0\.1"),
        (changed(steps__tail_bias={"bits": 8, "bound": float("nan")}), "bound nan"),
        (changed(steps__tail_bias={"bits": 8, "bound": 70_000.0}), r"bound 70000\.0"),
        (changed(steps__tail_bias={"bits": 2, "bound": 0.1}), r"'tail\.bias': symbols run from"),
        (changed(meta__width=None), "width is None"),
        (changed(meta__width=0), "width is 0"),
        (changed(meta__height=-3), "height is -3"),
        (changed(meta__height=2.5), r"height is 2\.5"),
        (pickle.dumps(b"only bytes"), "holds a bytes"),
        (pickle.dumps({}), "'__meta' is missing"),
        (pickle.dumps({"__meta": {"width": 2, "height": 2}}), "'quantization_config' is missing"),
        (b"", "not a pickle"),
        (b"\x89PNG\r\n\x1a\n", "not a pickle"),
    ],
)
def test_damaged_files_say_what_is_wrong(data: bytes, text: str) -> None:
    with pytest.raises(CorruptBitstream, match=text):
        import_published(data, CONFIG)


def test_a_file_with_code_in_it_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {trap}",)

    content = published()
    content["tail.bias"] = Trap()
    with pytest.raises(CorruptBitstream, match=r"STACK_GLOBAL at byte \d+ is refused"):
        import_published(pickle.dumps(content, protocol=4), CONFIG)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("data", "limits", "text"),
    [
        (changed(meta__width=200_000), Limits(), "200000x21"),
        (changed(meta__width=60_000, meta__height=60_000), Limits(), "60000x60000"),
        (changed(), Limits(max_pixels=33 * 21 - 1), "33x21"),
        (changed(), Limits(max_file_bytes=100), "at most 100 are"),
        (changed(), Limits(max_parameters=400), "networks have 5.. weights; at most 400"),
    ],
)
def test_limits(data: bytes, limits: Limits, text: str) -> None:
    with pytest.raises(LimitExceeded, match=text):
        import_published(data, CONFIG, limits)


def test_a_configuration_of_giants_is_refused_before_it_is_followed() -> None:
    config = {"model": {"hidden_sizes": [4096] * 16}}
    with pytest.raises(LimitExceeded, match="weights"):
        import_published(changed(), config)


def test_our_own_format_is_recognised() -> None:
    data = import_published(changed(), CONFIG)
    with pytest.raises(UsageError, match="of our format already"):
        import_published(data, CONFIG)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("model: [", "no readable YAML"),
        (b"\xff\xfe\xff", "no readable YAML"),
        ("- a\n- b\n", "is a list; accepted: a mapping"),
        ("", "is a NoneType"),
        ("model: 3", "model is 3; accepted: a mapping"),
        ("model: {hidden_sizes: 3}", r"model\.hidden_sizes is 3; accepted: a list of integers"),
        ("model: {hidden_sizes: [1.5]}", r"model\.hidden_sizes is \[1\.5\]"),
        ("model: {hidden_sizes: [true]}", r"model\.hidden_sizes is \[True\]"),
        ("model: {hidden_sizes: []}", "number of hidden layers is 0"),
        ("model: {hidden_sizes: [5000]}", "5000"),
        ("model: {encoder_params: {num_frequencies: }}", "num_frequencies is None"),
        ("model: {encoder_params: {num_frequencies: 99}}", "99"),
        ("model: {encoder_params: {gaussian: 1}}", r"encoder_params\.gaussian is unknown"),
        ("model: {layers: 3}", r"model\.layers is unknown; accepted: c, encoder_params"),
        ("model: {omega: fast}", "model.omega is 'fast'; accepted: a number"),
        ("model: {omega: 20}", "different omegas, 20 and 30"),
        ("model: {encoder_params: {scale: 2}}", r"different encoder scales, 2 and 1\.4"),
        ("model: {modulator_params: {output_features: 2}}", "output_features is not 1"),
        ("model: {modulator_params: {omega: 30, sigma: 0.12345}}", "multiple of 1/1000"),
        ("!!python/object/apply:os.system ['true']", "no readable YAML"),
        ("[" * 5000, "no readable YAML"),
    ],
)
def test_wrong_configurations_say_what_is_wrong(config: str | bytes, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        import_published(changed(), config)


def test_an_endless_configuration_is_refused() -> None:
    with pytest.raises(LimitExceeded, match="configuration has 70,000 bytes"):
        import_published(changed(), " " * 70_000)


def test_damaged_files_give_one_of_our_errors_or_a_file() -> None:
    data = changed()
    random = np.random.default_rng(4)
    outcomes = set()
    for _ in range(1500):
        damaged = bytearray(data)
        for position in random.integers(0, len(data), random.integers(1, 4)):
            damaged[position] = random.integers(0, 256)
        try:
            import_published(bytes(damaged[: random.integers(0, 2 * len(data))]), CONFIG)
            outcomes.add("imported")
        except NifError as error:
            outcomes.add(type(error).__name__)
    assert "CorruptBitstream" in outcomes
    assert outcomes <= {"CorruptBitstream", "LimitExceeded", "imported"}
