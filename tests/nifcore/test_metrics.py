"""Metrics against pytorch-msssim, scikit-image and their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytorch_msssim
import torch
from numpy.typing import NDArray
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from nifcore import metrics
from nifcore.errors import UsageError


def pair(height: int, width: int, noise: int = 25) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A piece of a photograph, and the same with noise and a shift of brightness."""
    original = astronaut()[:height, 60 : 60 + width]
    random = np.random.default_rng(height * 1000 + width)
    changed = original + random.integers(-noise, noise + 1, original.shape) + 4
    return original, changed.clip(0, 255).astype(np.uint8)


def batch(picture: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32))


# --- MSE and PSNR ------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_psnr_is_scikit_images(channels: int) -> None:
    random = np.random.default_rng(channels)
    a, b = random.integers(0, 256, (2, 300, 301, channels), dtype=np.uint8)
    assert metrics.psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255))
    assert metrics.mse(a, b) == np.mean((a.astype(float) - b) ** 2)


def test_psnr_of_equal_and_of_opposite_pictures() -> None:
    black = np.zeros((5, 7, 3), np.uint8)
    assert metrics.psnr(black, black) == math.inf
    assert metrics.mse(black, black) == 0
    assert metrics.psnr(black, black + np.uint8(255)) == 0
    assert metrics.psnr(black[..., 0], black[..., 0] + np.uint8(1)) == pytest.approx(48.1308036)


def test_mse_of_a_wide_picture_and_of_views() -> None:
    a = np.random.default_rng(0).integers(0, 256, (2, 200_000), dtype=np.uint8)
    assert metrics.mse(a[:, ::-2], a[:, 1::2]) == np.mean(
        (a[:, ::-2].astype(float) - a[:, 1::2]) ** 2
    )


# --- SSIM --------------------------------------------------------------------------------------


def exact_window(channels: int) -> torch.Tensor:
    """The Gaussian window in double precision (the package's own is in single)."""
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    return (taps / taps.sum()).expand(channels, 1, 1, 11)


@pytest.mark.parametrize(("height", "width"), [(11, 11), (11, 40), (64, 53)])
def test_ssim_is_that_of_pytorch_msssim(height: int, width: int) -> None:
    a, b = (batch(picture).double() for picture in pair(height, width))
    expected = float(pytorch_msssim.ssim(a, b, data_range=255, win=exact_window(3)))
    assert float(metrics.ssim(a, b, 255.0)) == pytest.approx(expected, abs=1e-12)
    assert float(metrics.ssim(a.float(), b.float(), 255.0)) == pytest.approx(expected, abs=1e-6)
    single = float(pytorch_msssim.ssim(a.float(), b.float(), data_range=255))
    assert float(metrics.ssim(a.float(), b.float(), 255.0)) == pytest.approx(single, abs=3e-5)


def test_ssim_is_that_of_scikit_image() -> None:
    a, b = pair(80, 70)
    _, full = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, truncate=3.5,
        data_range=255, channel_axis=2, full=True,
    )  # fmt: skip
    # It mirrors the picture at its borders; whole windows lie five pixels inside.
    expected = full[5:-5, 5:-5].mean()
    double = [batch(picture).double() for picture in (a, b)]
    assert float(metrics.ssim(*double, 255.0)) == pytest.approx(expected, abs=1e-9)
    assert float(metrics.ssim(batch(a), batch(b), 255.0)) == pytest.approx(expected, abs=1e-5)


def test_ssim_does_not_depend_on_the_scale_of_the_values() -> None:
    a, b = (batch(picture).double() for picture in pair(40, 40))
    assert float(metrics.ssim(a / 255, b / 255)) == pytest.approx(float(metrics.ssim(a, b, 255.0)))
    assert float(metrics.ssim(a, a, 255.0)) == pytest.approx(1.0)


def test_a_batch_is_the_mean_of_its_pictures_and_channels() -> None:
    random = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 3, 2, 20, 24, generator=random, dtype=torch.float64)
    each = [
        float(metrics.ssim(x[n : n + 1, c : c + 1], y[n : n + 1, c : c + 1]))
        for n in range(3)
        for c in range(2)
    ]
    assert float(metrics.ssim(x, y)) == pytest.approx(sum(each) / 6)


def test_gradients_are_those_of_finite_differences() -> None:
    random = torch.Generator().manual_seed(2)
    x, y = torch.rand(2, 1, 2, 13, 12, generator=random, dtype=torch.float64)
    assert torch.autograd.gradcheck(metrics.ssim, (x.requires_grad_(), y.requires_grad_()))


def test_the_gradient_of_ssim_is_that_of_pytorch_msssim() -> None:
    a, b = (batch(picture) for picture in pair(48, 40))
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    metrics.ssim(ours, b, 255.0).backward()
    pytorch_msssim.ssim(theirs, b, data_range=255).backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-8)


# --- MS-SSIM -----------------------------------------------------------------------------------

SIZES = [(161, 161), (161, 300), (176, 208), (201, 187), (330, 171)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_ms_ssim_is_that_of_pytorch_msssim(height: int, width: int) -> None:
    a, b = pair(height, width)
    expected = float(pytorch_msssim.ms_ssim(batch(a), batch(b), data_range=255))
    assert expected < 0.95
    double = [batch(picture).double() for picture in (a, b)]
    exact = float(pytorch_msssim.ms_ssim(*double, data_range=255, win=exact_window(3)))
    assert float(metrics.ms_ssim(*double, 255.0)) == pytest.approx(exact, abs=1e-12)
    assert float(metrics.ms_ssim(batch(a), batch(b), 255.0)) == pytest.approx(expected, abs=1e-5)
    assert metrics.ms_ssim_pictures(a, b) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("strip", [1, 3000, 1 << 30])
def test_strips_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    a, b = pair(170, 165)
    expected = float(metrics.ms_ssim(batch(a).double(), batch(b).double(), 255.0))
    monkeypatch.setattr(metrics, "_STRIP_PIXELS", strip)
    assert metrics.ms_ssim_pictures(a, b) == pytest.approx(expected, abs=1e-6)


def test_ms_ssim_pictures_takes_grey_and_alpha() -> None:
    a, b = pair(170, 165)
    each = [metrics.ms_ssim_pictures(a[..., c], b[..., c]) for c in range(3)]
    assert all(value is not None and 0 < value < 1 for value in each)
    both = metrics.ms_ssim_pictures(a[..., :2], b[..., :2])
    assert both == pytest.approx((each[0] + each[1]) / 2)  # type: ignore[operator]
    assert metrics.ms_ssim_pictures(a[..., :1], b[..., :1]) == each[0]
    assert metrics.ms_ssim_pictures(a, a) == pytest.approx(1.0)


def test_the_smallest_picture_is_the_one_pytorch_msssim_takes() -> None:
    a, b = pair(300, 160)
    assert metrics.ms_ssim_pictures(a, b) is None
    assert metrics.ms_ssim_pictures(a.transpose(1, 0, 2), b.transpose(1, 0, 2)) is None
    with pytest.raises(AssertionError, match="larger than 160"):
        pytorch_msssim.ms_ssim(batch(a), batch(b))
    with pytest.raises(UsageError, match="at least 161"):
        metrics.ms_ssim(batch(a), batch(b), 255.0)
    assert metrics.MS_SSIM_MIN_SIDE == 161


def test_the_gradient_of_ms_ssim_is_that_of_pytorch_msssim() -> None:
    a, b = (batch(picture) for picture in pair(165, 170))
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    metrics.ms_ssim(ours, b, 255.0).backward()
    pytorch_msssim.ms_ssim(theirs, b, data_range=255).backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-8)


def test_opposite_pictures_give_zero_and_a_gradient_of_numbers() -> None:
    y, x = np.mgrid[0:161, 0:161]
    checks = batch(np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2))
    output = (255 - checks).requires_grad_()
    value = metrics.ms_ssim(output, checks, 255.0)
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(output.grad).all()  # type: ignore[arg-type]
    negative = (255 - checks)[0].permute(1, 2, 0).byte().numpy()
    positive = checks[0].permute(1, 2, 0).byte().numpy()
    assert metrics.ms_ssim_pictures(negative, positive) == 0


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("function", [metrics.mse, metrics.psnr, metrics.ms_ssim_pictures])
@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), r"\(4, 4, 3\) and \(4, 4\)"),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), float), "uint8 and float64"),
        (np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8), r"\(0, 4\)"),
        (np.zeros(4, np.uint8), np.zeros(4, np.uint8), r"\(4,\)"),
    ],
)
def test_pictures_that_cannot_be_compared(
    function: object, a: NDArray[np.uint8], b: NDArray[np.uint8], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        function(a, b)  # type: ignore[operator]


def test_tensors_that_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match="at least 11"):
        metrics.ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))
    with pytest.raises(UsageError, match=r"\(1, 3, 20, 20\) and \(1, 1, 20, 20\)"):
        metrics.ssim(torch.zeros(1, 3, 20, 20), torch.zeros(1, 1, 20, 20))
    with pytest.raises(UsageError):
        metrics.ssim(torch.zeros(3, 20, 20), torch.zeros(3, 20, 20))
