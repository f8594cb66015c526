"""What is compared: every method with its grid of learning rates, and SOAP's variants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from benchmarks.optimisers.adamw import AdamW
from benchmarks.optimisers.kron import Kron
from benchmarks.optimisers.muon import Muon
from benchmarks.optimisers.shampoo import Shampoo
from benchmarks.optimisers.soap import OpenSoap, SoapChoices
from nifcore.architecture import Architecture
from nifcore.soap import Soap


class Method(Protocol):
    """An optimiser at work on a list of tensors."""

    def step(self, gradients: Sequence[Tensor], rate: float) -> object:
        """Update the tensors in place with learning rate ``rate``; the codec's own also reports."""


@dataclass(frozen=True)
class Contender:
    """A method with its settings.

    Attributes:
        name: of the method and what is unusual about its settings.
        make: starts it on the parameters of an architecture.
        peaks: learning rates to try.
    """

    name: str
    make: Callable[[Architecture, list[Tensor]], Method]
    peaks: tuple[float, ...] = ()


def _hidden_muon(arch: Architecture, params: list[Tensor]) -> Method:
    """Leave first and last layers of both networks to AdamW, as its author recommends.

    With Muon on these too the fits lose half a decibel.
    """
    split = arch.genesis_tensors
    ends = {0, split - 2} | ({split, len(params) - 2} if len(params) > split else set())
    return Muon(params, adam=ends)


CONTENDERS = (
    Contender("SOAP", lambda _, params: Soap(params), (2e-3, 3e-3, 5e-3, 8e-3)),
    # 0.95 is better here than 0.99, and that than the usual 0.999: the fits are short
    Contender("AdamW", lambda _, params: AdamW(params, beta2=0.95), (1e-3, 2e-3, 4e-3, 8e-3)),
    Contender("Muon", _hidden_muon, (2e-3, 3e-3, 5e-3, 8e-3)),
    Contender("Shampoo", lambda _, params: Shampoo(params), (1e-3, 2e-3, 4e-3, 8e-3)),
    Contender("PSGD-Kron", lambda _, params: Kron(params), (1e-3, 2e-3, 3e-3, 5e-3)),
)
"""The methods; SOAP is the codec's own."""


@dataclass(frozen=True)
class Variant:
    """SOAP with one choice made otherwise.

    Attributes:
        name: what is unusual.
        choices: all settings.
        warmup: iterations of warm-up.
    """

    name: str
    choices: SoapChoices = field(default_factory=SoapChoices)
    warmup: int = 100

    def contender(self) -> Contender:
        """Return it as something that can be run."""
        return Contender(self.name, lambda _, params: OpenSoap(params, self.choices))


VARIANTS = (
    Variant("as the codec runs it"),
    Variant("refresh 1", SoapChoices(refresh=1)),
    Variant("refresh 50", SoapChoices(refresh=50)),
    Variant("refresh 10, eigendecomposition", SoapChoices(decomposition="eigh")),
    Variant("beta1 0.8", SoapChoices(beta1=0.8)),
    Variant("beta1 0.9", SoapChoices(beta1=0.9)),
    Variant("beta1 0.99", SoapChoices(beta1=0.99)),
    Variant("beta2 0.9", SoapChoices(beta2=0.9)),
    Variant("beta2 0.99", SoapChoices(beta2=0.99)),
    Variant("both 0.9", SoapChoices(beta1=0.9, beta2=0.9)),
    Variant("covariances 0.99", SoapChoices(covariance_beta=0.99)),
    Variant("no bias correction", SoapChoices(corrected=False)),
    Variant("steps at the first call", SoapChoices(measures_first=False)),
    Variant("left side only", SoapChoices(sides="left")),
    Variant("right side only", SoapChoices(sides="right")),
    Variant("shorter side only", SoapChoices(sides="shorter")),
    Variant("biases rotated", SoapChoices(vectors="rotated")),
    Variant("biases joined", SoapChoices(vectors="joined")),
    Variant("covariances by KL", SoapChoices(covariances="kl")),
    Variant("not cautious", SoapChoices(cautious=False)),
    Variant("Nesterov instead of cautious", SoapChoices(nesterov=True, cautious=False)),
    Variant("Nesterov and cautious", SoapChoices(nesterov=True)),
    Variant("no warm-up", warmup=0),
    Variant("warm-up 25", warmup=25),
    Variant("warm-up 200", warmup=200),
)
"""The codec's choices, and one of them changed at a time."""
