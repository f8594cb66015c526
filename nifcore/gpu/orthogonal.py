"""Orthonormal bases of B matrices, on a CUDA device without waiting for the host.

SOAP follows the eigenvectors of a covariance C by orthonormalising ``C Q`` from the left to the
right. What can do that inside a recorded graph:

- ``torch.linalg.qr`` looks at the factorisation's status on the host for some sizes and batches,
  and launches per matrix for others: right on a CPU, of no use in a graph.
- Newton-Schulz iterations give the polar factor. With C symmetric and positive, ``C Q`` *is* a
  polar decomposition, its orthogonal factor is Q itself, and the basis would never turn.
- Cholesky QR squares the condition number; covariances of gradients have 1e7 and more.

So: block Gram-Schmidt. Panels of columns lose what lies in the panels before by batched products,
a program orthonormalises each panel, and all of it is done twice, which repairs columns of which
the first round left only noise. ``tests/nifcore/gpu/test_orthogonal.py`` holds it to float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PANEL = 32
_PASSES = 3
_ROUNDS = 2


def orthonormal(matrices: Tensor) -> Tensor:
    """Return Q of the QR decompositions of ``matrices`` (B, n, n), up to signs of its columns."""
    if matrices.device.type == "cuda":
        return gram_schmidt(matrices)
    basis: Tensor = torch.linalg.qr(matrices).Q
    return basis


def gram_schmidt(matrices: Tensor) -> Tensor:
    """Return orthonormal bases (B, n, n) whose first k columns span those of ``matrices``.

    Columns that depend on those before, zero ones among them, are replaced by something
    orthogonal.
    """
    # loaded only where it runs: on a CPU the batches do without Triton
    import triton

    from nifcore.gpu.basis_programs import orthonormal_panel

    count, n, _ = matrices.shape
    # squares of tiny columns would vanish
    left = matrices / matrices.abs().amax(1, keepdim=True).clamp_min(1e-37)
    panels: list[Tensor] = []
    for start in range(0, n, _PANEL):
        panel = left[:, :, start : start + _PANEL].contiguous()
        done = torch.cat(panels, 2) if panels else None
        for _ in range(_ROUNDS):
            if done is not None:
                for _ in range(2):
                    panel = torch.baddbmm(panel, done, done.mT @ panel, alpha=-1.0)
            orthonormal_panel[(count,)](
                panel,
                n,
                panel.shape[2],
                ROWS=max(16, triton.next_power_of_2(n)),
                COLUMNS=_PANEL,
                PASSES=_PASSES,
                num_warps=4 if n <= 128 else 8,
                enable_fp_fusion=True,
            )
        panels.append(panel)
    return torch.cat(panels, 2)
