import pytest
import torch

from nifcore.flat import all_finite, flattened, in_a_row, joined, parts, spread

SHAPES = [(3, 4), (5,), (1, 1), (2, 3)]


def draw():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def test_a_row_shares_the_memory_of_tensors_that_lie_in_one():
    tensors = in_a_row(draw())

    row = joined(tensors)
    assert row is not None
    row.mul_(2.0)

    for ours, drawn in zip(tensors, draw(), strict=True):
        assert torch.equal(ours, 2 * drawn)


def lying_apart():
    return draw()


def in_another_order():
    return in_a_row(draw())[::-1]


def with_a_gap():
    return [t for i, t in enumerate(in_a_row(draw())) if i != 1]


def with_strides():
    first, *others = in_a_row([torch.zeros(4, 4), *draw()])
    return [first.T, *others]


@pytest.mark.parametrize("make", [lying_apart, in_another_order, with_a_gap, with_strides])
def test_other_tensors_are_copied(make):
    tensors = make()
    expected = [number for t in tensors for number in t.flatten().tolist()]

    assert joined(tensors) is None
    row = flattened(tensors)

    assert row.tolist() == expected
    row.zero_()
    assert [number for t in tensors for number in t.flatten().tolist()] == expected


def test_parts_are_what_was_flattened():
    tensors = draw()

    found = parts(flattened(tensors), tensors)

    assert all(torch.equal(a, b) for a, b in zip(found, tensors, strict=True))


def test_numbers_are_spread_over_their_tensors():
    assert (
        spread([1.0, 2.0, 3.0, 4.0], draw()).tolist() == [1.0] * 12 + [2.0] * 5 + [3.0] + [4.0] * 6
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_number_shows(bad):
    tensors = draw()
    assert all_finite(tensors)
    tensors[-1][1, 2] = bad
    assert not all_finite(tensors)
