"""The shape of one tile's networks; known without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nifcore.header import Header, NetShape


@dataclass(frozen=True)
class Architecture:
    """The shape and constants of one tile's two networks.

    Attributes:
        genesis: hidden sizes and frequencies of the Genesis network.
        modulation: the same of the Modulation network, or None where it is switched off.
        channels: output features of the Genesis network (1 to 4).
        base: ratio of successive positional-encoding frequencies.
        omega: period w_0 of the sines.
        sigma: strength of the modulation.
    """

    genesis: NetShape
    modulation: NetShape | None
    channels: int
    base: float = 1.4
    omega: float = 30.0
    sigma: float = 10.0

    @classmethod
    def of(cls, header: Header) -> Architecture:
        """Return the architecture that a file's header describes."""
        return cls(
            header.genesis,
            header.modulation,
            header.channels,
            header.base,
            header.omega,
            header.sigma,
        )

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of all parameters in file order."""
        shapes = self.genesis.tensor_shapes(self.channels)
        return shapes if self.modulation is None else shapes + self.modulation.tensor_shapes(1)

    @property
    def genesis_tensors(self) -> int:
        """How many of the leading tensors belong to the Genesis network."""
        return 2 * (len(self.genesis.hidden) + 1)

    @property
    def parameters(self) -> int:
        """Number of scalar parameters."""
        return sum(math.prod(shape) for shape in self.shapes)
