"""The golden files: every later version must read them to the same weights and pixels.

``index.json`` tells of each file ``NAME.nif`` its own SHA-256 and that of its symbols; where
there is a ``NAME.png``, it holds the pixels. Entries are added, never changed: bytes that differ
need a new format version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from nifcore.bitstream import unpack
from nifcore.tensors import QuantisedTensor, UniformStep

FOLDER = Path(__file__).parent
INDEX = FOLDER / "index.json"


def read_index() -> dict[str, dict[str, str]]:
    """Return the entries by name."""
    if not INDEX.exists():
        return {}
    entries: dict[str, dict[str, str]] = json.loads(INDEX.read_text(encoding="utf-8"))
    return entries


def symbols_sha256(tiles: Sequence[Sequence[QuantisedTensor]]) -> str:
    """Digest steps and symbols: per tensor a line of text, then int32 with the low byte first."""
    digest = hashlib.sha256()
    for tensors in tiles:
        for tensor in tensors:
            step = tensor.step
            fields = (
                (step.index,) if isinstance(step, UniformStep) else (step.bits, step.bound_bits)
            )
            digest.update(f"{tensor.symbols.shape} {fields}\n".encode())
            digest.update(tensor.symbols.astype("<i4").tobytes())
    return digest.hexdigest()


def add(name: str, data: bytes) -> bool:
    """Add a golden file unless the name is taken; tell whether it was added."""
    index = read_index()
    if name in index:
        return False
    (FOLDER / f"{name}.nif").write_bytes(data)
    index[name] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "symbols_sha256": symbols_sha256(unpack(data)[1]),
    }
    INDEX.write_text(json.dumps(dict(sorted(index.items())), indent=2) + "\n", encoding="utf-8")
    return True
