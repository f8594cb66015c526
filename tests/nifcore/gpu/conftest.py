"""The Triton programs run compiled where there is a CUDA device, else in Triton's interpreter.

Triton decides when a program is defined, so this must be loaded before ``nifcore.gpu.fused``.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the batched kernels are tested."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """A CUDA device, or skip."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device("cuda")
