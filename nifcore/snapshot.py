"""What a checkpoint carries: all that a later run needs to go on with an encode, as bytes."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nifcore.tensors import PublishedStep, QuantisedTensor, UniformStep

_VERSION = 2


class SnapshotUnreadable(Exception):
    """The bytes are no snapshot, or a damaged one."""


@dataclass(frozen=True)
class Snapshot:
    """An encode between two iterations.

    Attributes:
        fingerprint: identifies picture and parameters; a snapshot of others is of no use.
        seconds: that the encode has taken.
        passes: over every pixel, of the tiles done.
        tried: of a search for a PSNR, (bytes asked, PSNR in dB, file).
        asked_bytes: that the search tries now.
        header: of the file in the making, None before it is planned.
        tiles: those done, by their index.
        fits: states of those begun, as :meth:`nifcore.fit.TileFit.state` returns them.
    """

    fingerprint: str
    seconds: float
    passes: float
    tried: list[tuple[float, float, bytes]]
    asked_bytes: float
    header: bytes | None
    tiles: dict[int, list[QuantisedTensor]]
    fits: dict[int, dict[str, Any]]

    def to_bytes(self) -> bytes:
        """Return what :meth:`read` takes."""
        state = {
            "version": _VERSION,
            "fingerprint": self.fingerprint,
            "seconds": self.seconds,
            "passes": self.passes,
            "tried": [(size, db, _as_tensor(data)) for size, db, data in self.tried],
            "asked_bytes": self.asked_bytes,
            "header": None if self.header is None else _as_tensor(self.header),
            "tiles": {index: [_saved(t) for t in tile] for index, tile in self.tiles.items()},
            "fits": self.fits,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    @classmethod
    def read(cls, data: bytes, fingerprint: str) -> Snapshot | None:
        """Return a snapshot; None if it is of another encode, or another version's.

        Raises:
            SnapshotUnreadable: ``data`` is none.
        """
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            version, found = state["version"], state["fingerprint"]
        except (
            pickle.UnpicklingError,
            RuntimeError,
            EOFError,
            KeyError,
            ValueError,
            TypeError,
        ) as error:
            raise SnapshotUnreadable(str(error)) from error
        if version != _VERSION or found != fingerprint:
            return None
        header = state["header"]
        return cls(
            fingerprint,
            state["seconds"],
            state["passes"],
            [(size, db, _as_bytes(file)) for size, db, file in state["tried"]],
            state["asked_bytes"],
            None if header is None else _as_bytes(header),
            {index: [_restored(t) for t in tile] for index, tile in state["tiles"].items()},
            state["fits"],
        )


def _as_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def _saved(tensor: QuantisedTensor) -> tuple[Tensor, list[int]]:
    step = tensor.step
    code = [step.index] if isinstance(step, UniformStep) else [step.bits, step.bound_bits]
    return torch.from_numpy(tensor.symbols), code


def _restored(saved: tuple[Tensor, list[int]]) -> QuantisedTensor:
    symbols, code = saved
    step = UniformStep(code[0]) if len(code) == 1 else PublishedStep(code[0], code[1])
    return QuantisedTensor(symbols.numpy(), step)
