import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import nifcore
from nifcore.architecture import Architecture
from nifcore.bitstream import pack
from nifcore.errors import LimitExceeded, UsageError
from nifcore.header import Colour, Header, NetShape
from nifcore.limits import Limits
from nifcore.network import coordinates, forward, initialise, make_grid, to_bytes
from nifcore.quantise import UniformLattice
from nifcore.tensors import nearest_step_index

CPU = torch.device("cpu")


def make_file(width=60, height=44, tiles=(1, 1), colour=Colour.SRGB, **constants):
    """A file of random but smooth networks, as an encoder would write it."""
    header = Header(
        width=width,
        height=height,
        colour=colour,
        genesis=NetShape((12, 8), 3),
        modulation=NetShape((4,), 2),
        tiles=tiles,
        **constants,
    )
    arch = Architecture.of(header)
    lattice = UniformLattice((nearest_step_index(0.002),) * len(arch.shapes))
    parts = []
    for seed in range(header.tile_count):
        params = initialise(arch, torch.Generator().manual_seed(seed), [0.0] * header.channels)
        parts.append(lattice.round([p * 1.5 for p in params]))
    return header, pack(header, [part.tensors for part in parts]), [p.values for p in parts]


def pixels(image):
    return np.asarray(image)


@pytest.mark.parametrize("tiles", [(1, 1), (3, 2)])
def test_own_size_is_the_network_at_every_pixel_of_every_tile(tiles):
    header, data, weights = make_file(tiles=tiles)
    arch = Architecture.of(header)
    expected = np.zeros((44, 60, 3), np.uint8)
    for index in range(header.tile_count):
        x, y, w, h = header.tile_box(index)
        ys = coordinates(torch.arange(h, dtype=torch.float64), h)
        xs = coordinates(torch.arange(w, dtype=torch.float64), w)
        colour = forward(arch, weights[index], make_grid(arch, ys, xs, CPU))
        expected[y : y + h, x : x + w] = to_bytes(colour).numpy()

    found = pixels(nifcore.decode(data)).astype(int)

    assert np.abs(found - expected).max() <= 1


@given(st.data())
def test_a_region_is_that_part_of_the_whole_at_any_size(data):
    tiles = data.draw(st.sampled_from([(1, 1), (3, 2)]))
    _, file, _ = make_file(tiles=tiles)
    width, height = data.draw(st.integers(1, 130)), data.draw(st.integers(1, 90))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))

    whole = pixels(nifcore.decode(file, size=(width, height)))
    part = pixels(nifcore.decode(file, size=(width, height), region=(x, y, w, h)))

    assert whole.shape == (height, width, 3)
    assert np.abs(part.astype(int) - whole[y : y + h, x : x + w]).max() <= 1


def test_enlarging_agrees_with_an_ordinary_resampler():
    _, data, _ = make_file()
    own = nifcore.decode(data)

    twice = nifcore.decode(data, scale=2.0)

    usual = own.resize((120, 88), Image.Resampling.BICUBIC)
    inner = np.s_[4:-4, 4:-4]
    assert np.abs(pixels(twice).astype(int) - pixels(usual))[inner].mean() < 1.0


def test_shrinking_averages_like_an_ordinary_resampler():
    _, data, _ = make_file(width=240, height=176)
    own = nifcore.decode(data)

    small = nifcore.decode(data, size=(60, 44))

    usual = own.resize((60, 44), Image.Resampling.BOX)
    assert np.abs(pixels(small).astype(int) - pixels(usual)).max() <= 1


@pytest.mark.parametrize(
    ("colour", "mode"),
    [
        (Colour.GREY, "L"),
        (Colour.GREY_ALPHA, "LA"),
        (Colour.SRGB, "RGB"),
        (Colour.SRGB_ALPHA, "RGBA"),
    ],
)
def test_the_colour_id_gives_the_images_mode(colour, mode):
    _, data, _ = make_file(colour=colour)

    assert nifcore.decode(data).mode == mode


def test_a_picture_of_one_pixel():
    _, data, _ = make_file(width=1, height=1)

    assert nifcore.decode(data).size == (1, 1)
    assert nifcore.decode(data, size=(7, 3)).size == (7, 3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"size": (8, 8), "scale": 2.0}, "exclude"),
        ({"scale": 0.0}, "above 0"),
        ({"scale": float("nan")}, "above 0"),
        ({"size": (0, 5)}, "at least 1x1"),
        ({"region": (50, 0, 20, 10)}, "inside the picture of 60x44"),
        ({"region": (0, 0, 0, 10)}, "inside"),
        ({"region": (-1, 0, 5, 5)}, "inside"),
    ],
)
def test_wrong_views_say_what_is_accepted(asked, message):
    _, data, _ = make_file()

    with pytest.raises(UsageError, match=message):
        nifcore.decode(data, **asked)


def test_a_huge_rendering_is_refused_before_it_is_made():
    _, data, _ = make_file()

    with pytest.raises(LimitExceeded, match="at most 50000000 pixels"):
        nifcore.decode(data, scale=1000.0)
    with pytest.raises(LimitExceeded):
        nifcore.decode(data, limits=Limits(max_pixels=100))
    # a part of a huge rendering is welcome
    assert nifcore.decode(data, scale=1000.0, region=(30_000, 20_000, 5, 5)).size == (5, 5)


def test_paths_files_and_bytes_decode_alike(tmp_path):
    _, data, _ = make_file()
    path = tmp_path / "a.nif"
    path.write_bytes(data)

    with path.open("rb") as file:
        images = [nifcore.decode(source) for source in (data, path, str(path), file)]

    assert all(np.array_equal(pixels(image), pixels(images[0])) for image in images)
