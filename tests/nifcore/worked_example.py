"""The worked file of ``docs/format.md``.

``python -m tests.nifcore.worked_example`` writes its numbers into that page.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nifcore.bitstream import pack
from nifcore.header import CRC_BYTES, Colour, Header, NetShape, header_bytes
from nifcore.probability import QUARTER_OCTAVES, SCALE_THRESHOLDS
from nifcore.tensors import STEP_MANTISSAS, QuantisedTensor, UniformStep
from tests.nifcore.reference_decoder import SymbolTrace, decode_file

PAGE = Path(__file__).parents[2] / "docs" / "format.md"

HEADER = Header(3, 2, Colour.GREY, NetShape((2,), 1), None)
SYMBOLS: list[tuple[int, list[list[int]] | list[int]]] = [
    (960, [[3, -2, 0, 1, -1, 6], [0, 9, -7, 2, 0, -300]]),
    (968, [6, -9]),
    (952, [[12, -70]]),
    (960, [120]),
]


def example() -> bytes:
    """Return the file."""
    tensors = [
        QuantisedTensor(np.array(symbols, dtype=np.int32), UniformStep(index))
        for index, symbols in SYMBOLS
    ]
    return pack(HEADER, [tensors])


def sections() -> dict[str, str]:
    """Return what belongs between the markers of the page, by the marker's name."""
    return {
        "mantissas": _block(STEP_MANTISSAS, 8),
        "thresholds": _block(SCALE_THRESHOLDS, 8),
        "quarters": ", ".join(map(str, QUARTER_OCTAVES)),
        "worked": _worked(),
    }


def fill(text: str) -> str:
    """Return the page's ``text`` with every section filled in."""
    for name, content in sections().items():
        begin, rest = text.split(f"<!-- {name} -->", 1)
        after = rest.split("<!-- end -->", 1)[1]
        around = "" if name == "quarters" else "\n"
        text = f"{begin}<!-- {name} -->{around}{content}{around}<!-- end -->{after}"
    return text


def _block(numbers: tuple[int, ...], columns: int) -> str:
    lines = [
        " ".join(f"{number:>8}" for number in numbers[start : start + columns])
        for start in range(0, len(numbers), columns)
    ]
    return "\n".join(["```", *lines, "```"])


def _worked() -> str:
    data = example()
    decoded = decode_file(data)
    head = header_bytes(HEADER)
    fields = [
        (8, "magic"),
        (1, "version"),
        (1, "flags: nothing stored, uniform lattice, entropy model 0"),
        (1, "width"),
        (1, "height"),
        (1, "colour: grey"),
        (1, "Genesis: one hidden layer"),
        (1, "of 2 features"),
        (1, "1 frequency, so 6 inputs"),
        (len(data) - len(head) - CRC_BYTES, "the tile's stream"),
        (CRC_BYTES, "CRC-32"),
    ]
    lines = [
        f"A grey picture of 3 x 2 pixels, {len(data)} bytes, without Modulation.",
        "",
        "| offset | bytes | |",
        "|---|---|---|",
    ]
    offset = 0
    for length, meaning in fields:
        raw = data[offset : offset + length].hex(" ").upper()
        lines.append(f"| {offset} | `{raw}` | {meaning} |")
        offset += length
    indices = ", ".join(str(index) for index, _ in SYMBOLS)
    lines += [
        "",
        f"The stream begins with `bits(11)` = 960, `bits(2)` = 3; the step indices are {indices}.",
        "Then come the differences of the step indices and the 17 symbols; *start* and *frequency*",
        "are the parts of 2^20 that the symbol, or the escape before it, occupies.",
        "",
        "| tensor | row | column | symbol | E | scale | table | start | frequency |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_trace_line(trace) for trace in decoded.trace]
    weights = [
        " ".join(f"{value:.6g}" for row in tensor for value in row) for tensor in decoded.weights[0]
    ]
    lines += [
        "",
        "The weights (rounded for print), tensor by tensor:",
        "",
        "```",
        *weights,
        "```",
        "",
        "The pixels, row by row:",
        "",
        "```",
        *[" ".join(f"{sample:3d}" for (sample,) in row) for row in decoded.render()],
        "```",
    ]
    return "\n".join(lines)


def _trace_line(t: SymbolTrace) -> str:
    cells = (t.tensor, t.row, t.column, t.symbol, t.expected, t.scale, t.table)
    return "| " + " | ".join(map(str, (*cells, t.start, t.frequency))) + " |"


def main() -> None:
    """Write the numbers into the page."""
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
