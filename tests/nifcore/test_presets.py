import math

import pytest

from nifcore.architecture import Architecture
from nifcore.errors import UnknownPreset, UsageError
from nifcore.header import NetShape
from nifcore.presets import EFFORTS, PRESETS, Cosine, Moment, Ramp, Sawtooth, find_recipe

# hidden sizes, modulation sizes, frequencies of the public configurations (aegroto/nif)
PUBLISHED = {
    "paper-120": ((120, 40, 28, 16), (16, 8), 16),
    "paper-0_31": ((120, 50, 28, 16), (24, 16, 8), 16),
    "paper-200": ((200, 64, 40, 20), (64, 16, 8), 16),
    "paper-280": ((280, 100, 48, 16), (64, 16, 8), 16),
    "paper-360": ((360, 150, 70, 32), (64, 16, 8), 16),
    "paper-450": ((450, 220, 85, 32), (64, 16, 8), 16),
    "paper-680": ((680, 260, 65, 30), (64, 16, 8), 16),
    "paper-celeba-0_65": ((24, 20, 18, 18), (20, 18, 16), 6),
    "paper-celeba-0_78": ((28, 24, 20, 18), (22, 18, 16), 8),
    "paper-celeba-1_33": ((50, 28, 24, 24), (28, 24, 16), 12),
    "paper-celeba-1_63": ((64, 32, 24, 24), (32, 24, 16), 12),
    "paper-celeba-2_97": ((120, 48, 32, 24), (32, 24, 16), 12),
    "paper-icb-360": ((360, 150, 70, 32), (64, 16, 8), 16),
    "paper-icb-680": ((680, 260, 65, 30), (128, 32, 16), 16),
    "paper-x2-120": ((120, 50, 32, 24), (16, 16, 16), 16),
    "paper-x4-120": ((120, 50, 32, 24), (16, 16, 16), 16),
    "paper-x4-280": ((280, 100, 48, 16), (64, 16, 8), 16),
}


def test_the_published_presets_are_all_there_with_their_shapes():
    found = {
        name: (recipe.genesis.hidden, recipe.modulation.hidden, recipe.genesis.frequencies)
        for name, recipe in PRESETS.items()
    }

    assert found == PUBLISHED


@pytest.mark.parametrize(
    ("name", "iterations", "stride"),
    [
        ("paper-120", 4 * (10 * 150 + 5 * 40), 2),
        ("paper-celeba-0_65", 10 * 300 + 5 * 40, 1),
        ("paper-icb-360", 256 * (5 * 30 + 5 * 5), 16),
    ],
)
def test_the_published_schedules(name, iterations, stride):
    recipe = PRESETS[name]

    assert recipe.iterations(stride**2) == iterations
    assert recipe.sampling.stride == stride
    assert recipe.published_bits == 8


def test_a_published_checkpoint_of_size():
    recipe = PRESETS["paper-680"]

    assert Architecture(recipe.genesis, recipe.modulation, 3).parameters == pytest.approx(
        241_000, rel=0.03
    )


def test_the_published_learning_rate_by_hand():
    schedule = Sawtooth(1e-3, 6e-4, warmup=20, period=150, decay=0.99)

    rates = [schedule.rate(Moment(0, 1, p)) for p in (0, 10, 19, 20, 149, 150, 169)]

    assert rates == pytest.approx(
        [
            6e-4,
            6e-4 + 4e-4 * 10 / 19,
            1e-3,
            6e-4 + 4e-4 * (1 - 20 / 150),
            6e-4 + 4e-4 * (1 - 149 / 150),
            6e-4,
            0.99e-3,
        ]
    )


def test_the_cosine_rises_then_falls_to_its_last_fraction():
    schedule = Cosine(2e-3, final=0.05, warmup=100)
    rates = [schedule.rate(Moment(i, 1000, 0)) for i in range(1000)]

    assert max(rates) == pytest.approx(2e-3)
    assert rates.index(max(rates)) in (99, 100)
    assert rates[550] == pytest.approx(2e-3 * (0.05 + 0.95 / 2))
    assert rates[-1] == pytest.approx(1e-4, rel=0.02)
    assert sorted(rates[:100]) == rates[:100]


def test_a_ramp_ends_where_it_says():
    ramp = Ramp(0.125, 0.7, 0.05)

    assert (ramp.at(0.0), ramp.at(1.0)) == (0.125, pytest.approx(0.7))
    assert ramp.at(0.5) == pytest.approx(0.125 + 0.575 * math.sqrt(math.sqrt(0.5**0.2)))


def test_every_effort_works_longer_than_the_one_below():
    lengths = [EFFORTS[level].iterations(16) for level in range(1, 10)]

    assert lengths == sorted(set(lengths))


def test_recipes_are_found_by_preset_or_effort():
    assert find_recipe(None, None) is EFFORTS[5]
    assert find_recipe(None, 9) is EFFORTS[9]
    assert find_recipe("paper-120", None).genesis == NetShape((120, 40, 28, 16), 16)


def test_wrong_names_and_levels_say_what_there_is():
    with pytest.raises(UnknownPreset, match=r"'fast'.*paper-120"):
        find_recipe("fast", None)
    with pytest.raises(UsageError, match="exclude"):
        find_recipe("paper-120", 3)
    for level in (0, 10, True, 2.5):
        with pytest.raises(UsageError, match="1 to 9"):
            find_recipe(None, level)


def test_large_networks_learn_at_lower_rates_and_published_recipes_as_published():
    recipe = EFFORTS[5]
    assert recipe.rate_scale(100) == recipe.rate_scale(16_000) == 1.0
    assert recipe.rate_scale(64_000) == pytest.approx(0.5)
    assert PRESETS["paper-680"].rate_scale(241_000) == 1.0


@pytest.mark.parametrize("level", range(1, 10))
def test_small_and_dense_networks_see_rounded_weights_for_longer_in_as_many_iterations(level):
    recipe = EFFORTS[level]
    deep, shallow = recipe.suited_to(5), recipe.suited_to(4)

    assert deep is recipe
    assert deep.iterations(16) == shallow.iterations(16)
    assert shallow.stages[1].rounded is None
    assert deep.stages[1].rounded < shallow.stages[1].length
    assert shallow.suited_to(4) is shallow
    for published in PRESETS.values():
        assert published.suited_to(4) is published
