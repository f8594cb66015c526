import pytest
import torch
from pytorch_msssim import ms_ssim as their_ms_ssim
from pytorch_msssim import ssim as their_ssim

from nifcore.losses import Objective


def pictures(rows, cols):
    generator = torch.Generator().manual_seed(rows)
    target = torch.rand(3, rows, cols, generator=generator) * 2 - 1
    output = (target + 0.2 * torch.randn(3, rows, cols, generator=generator)).double()
    return output, target.double()


@pytest.mark.parametrize(
    ("pixel", "truth"),
    [
        ("mse", torch.nn.functional.mse_loss),
        ("l1", torch.nn.functional.l1_loss),
        ("log_cosh", lambda a, b: torch.log(torch.cosh(a - b)).mean()),
    ],
)
def test_pixel_losses(pixel, truth):
    output, target = pictures(9, 13)
    leaf = output.clone().requires_grad_(True)
    expected = truth(leaf, target)
    expected.backward()
    objective = Objective(pixel)

    assert float(objective.value(output, target)) == pytest.approx(expected.item())
    total, gradient = objective.pixel_sum_and_gradient(output - target)
    assert float(total) / output.numel() == pytest.approx(expected.item())
    torch.testing.assert_close(gradient / output.numel(), leaf.grad)


@pytest.mark.parametrize(
    ("structural", "theirs", "size"),
    [("dssim", their_ssim, (20, 31)), ("dms_ssim", their_ms_ssim, (170, 165))],
)
def test_structural_terms_are_one_minus_the_index_on_the_scale_of_bytes(structural, theirs, size):
    output, target = pictures(*size)
    plain = Objective("log_cosh").value(output, target)

    found = Objective("log_cosh", structural, 0.3).value(output, target)

    index = theirs((output[None] + 1) * 127.5, (target[None] + 1) * 127.5, data_range=255)
    assert float(found - plain) == pytest.approx(0.3 * (1 - float(index)), rel=1e-4)


@pytest.mark.parametrize(
    ("structural", "rows", "cols", "applies"),
    [
        ("dssim", 11, 11, True),
        ("dssim", 10, 40, False),
        ("dms_ssim", 161, 161, True),
        ("dms_ssim", 160, 400, False),
        (None, 400, 400, False),
    ],
)
def test_pictures_smaller_than_the_window_have_no_structural_term(structural, rows, cols, applies):
    objective = Objective("mse", structural, 0.1)

    assert objective.applies_structure(rows, cols) is applies
    output, target = torch.zeros(3, rows, cols), torch.ones(3, rows, cols)
    assert bool(objective.value(output, target) > 1.0) is applies
