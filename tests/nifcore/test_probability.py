"""Probability tables: the same numbers from the page's rule, and the shape they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t as student

from nifcore.entropy import MIN_BITS
from nifcore.probability import (
    MAX_TABLE_SCALE,
    QUARTER_OCTAVES,
    SCALE_INDEX,
    SCALE_THRESHOLDS,
    TABLES,
    code_lengths,
    table,
)
from nifcore.rangecoder import TOTAL_BITS
from tests.nifcore import reference_decoder as reference

TOTAL = 1 << TOTAL_BITS


@pytest.mark.parametrize("number", range(TABLES))
def test_tables_equal_a_second_implementation(number: int) -> None:
    radius, cumulative = reference.table(number)
    assert table(number).radius == radius
    assert list(table(number).cumulative) == cumulative


@pytest.mark.parametrize("number", range(TABLES))
def test_tables_leave_every_symbol_its_place(number: int) -> None:
    cumulative = table(number).cumulative
    frequencies = np.diff(cumulative)
    assert cumulative[0] == 0
    assert cumulative[-1] == TOTAL
    assert frequencies.min() >= 1
    assert -math.log2(frequencies.max() / TOTAL) > MIN_BITS


def test_constants_equal_a_second_implementation() -> None:
    assert list(QUARTER_OCTAVES) == reference.QUARTERS
    assert list(SCALE_THRESHOLDS) == reference.THRESHOLDS


def test_the_table_of_a_scale_is_the_nearest_in_ratio() -> None:
    assert len(SCALE_INDEX) == MAX_TABLE_SCALE + 1
    for scale in range(1, MAX_TABLE_SCALE + 1):
        assert abs(SCALE_INDEX[scale] - 8 * math.log2(scale)) <= 0.5 + 1e-4
    assert SCALE_INDEX[-1] == TABLES - 1


@pytest.mark.parametrize("number", range(40, TABLES, 8))
def test_tables_have_their_mean_magnitude_and_shape(number: int) -> None:
    mean = 2 ** (number / 8) / 32
    model = table(number)
    p = np.diff(model.cumulative)[:-1] / TOTAL
    x = np.arange(-model.radius, model.radius + 1)
    assert (np.abs(x) * p).sum() == pytest.approx(mean, rel=0.03)
    # Mean magnitude of a t distribution of 7 degrees of freedom and unit scale: 0.8985.
    ideal = student(7, scale=mean / 0.8985)
    exact = ideal.cdf(x + 0.5) - ideal.cdf(x - 0.5)
    loss = (exact * np.log2(exact / p)).sum()  # bits per symbol by which the table misses
    assert loss < 0.003


def test_code_lengths_are_those_of_the_tables() -> None:
    radii, starts, lengths = code_lengths()
    for number in range(TABLES):
        model = table(number)
        assert radii[number] == model.radius
        part = lengths[starts[number] : starts[number] + 2 * model.radius + 2]
        assert np.allclose(part, -np.log2(np.diff(model.cumulative) / TOTAL), rtol=1e-12)
    assert starts[-1] + 2 * radii[-1] + 2 == len(lengths)


def test_no_product_of_the_rule_reaches_2_to_53() -> None:
    for number in range(TABLES):
        spread = 1024 + ((139 * QUARTER_OCTAVES[number % 4] << number // 4) >> 20)
        assert 139 * QUARTER_OCTAVES[number % 4] << number // 4 < 2**53
        assert spread << 22 < 2**53
        weights = 0
        for x in range(-table(number).radius, table(number).radius + 1):
            ratio = (spread << 22) // (spread + 1024 * x * x)
            weights += ((ratio * ratio >> 22) ** 2) >> 22
        assert weights * 1.1 * TOTAL < 2**53
