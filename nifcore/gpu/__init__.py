"""Fitting many networks at once, on a GPU.

One architecture, one recipe, B networks: their weights are one (B, N) tensor, and every operation
of an optimiser iteration is one launch for all of them.

::

    layout      where each tensor lies in the (B, N) weights
    lattices    targets and axis tables of B tiles, ordered by lattice
    base        what a batched kernel is, and one as an ordinary kernel
    stacked     the mathematics in batched torch: the truth for the kernel below, and its stand-in
    fused       the same in Triton (network_programs): forward, loss, backward in one launch
    soap        SOAP and AdamW over (B, N)
    orthogonal  orthonormal bases without waiting for the host (basis_programs)
    graphs      an iteration recorded once and replayed
    batch_fit   B fits in lockstep, each with its own monitor, budget and failures
    batch_encode  several pictures in, each its own file or its own error
"""
