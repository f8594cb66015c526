"""A recipe for tests that any fit will do for."""

from __future__ import annotations

from dataclasses import replace

from nifcore.presets import EFFORTS, Recipe, Sampling


def _brief(recipe: Recipe) -> Recipe:
    first, second = recipe.stages
    return replace(recipe, stages=(first.lasting(25), second.lasting(75)), sampling=Sampling(None))


BRIEF = replace(_brief(EFFORTS[1]), shallow=_brief(EFFORTS[1].suited_to(4)))
"""As effort 1, in a hundred iterations."""
