"""One of the many equal networks: units in order, no negative bias.

The units of a hidden layer may change places, and since the sine is odd, a unit may change the sign
of everything that goes in and of everything that comes out: the picture stays the same. So a file
need not say which of those ``2^n n!`` networks it holds. Entropy model 1 (``docs/format.md``,
section "Weights") takes the one whose biases ascend from 0, and stores their differences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nifcore.errors import UsageError
from nifcore.header import EntropyModel, Header
from nifcore.tensors import QuantisedTensor


def in_order(header: Header, tensors: Sequence[QuantisedTensor]) -> list[QuantisedTensor]:
    """Return tensors that give the same pixels, in the order that the header's model wants.

    Args:
        tensors: of one tile, in file order.

    Returns:
        The tensors themselves where the model wants no order.

    Raises:
        UsageError: a symbol is -2**31, which has no opposite in 32 bits.
    """
    if header.entropy_model is not EntropyModel.ORDERED:
        return list(tensors)
    symbols = [tensor.symbols.copy() for tensor in tensors]
    if min(int(each.min()) for each in symbols) == np.iinfo(np.int32).min:
        raise UsageError("a symbol is -2**31; from -2**31 + 1 on they are accepted here")
    first = 0
    for net in (header.genesis, header.modulation):
        if net is None:
            continue
        for layer in range(len(net.hidden)):
            weight, bias, onward = range(first + 2 * layer, first + 2 * layer + 3)
            signs = np.where(symbols[bias] < 0, -1, 1).astype(np.int32)
            order = np.argsort(symbols[bias] * signs, kind="stable")
            signs = signs[order]
            symbols[weight] = symbols[weight][order] * signs[:, None]
            symbols[bias] = symbols[bias][order] * signs
            symbols[onward] = symbols[onward][:, order] * signs
        first += 2 * (len(net.hidden) + 1)
    pairs = zip(symbols, tensors, strict=True)
    return [QuantisedTensor(each, tensor.step) for each, tensor in pairs]
