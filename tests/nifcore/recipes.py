"""A recipe for tests that any fit will do for."""

from __future__ import annotations

from dataclasses import replace

from nifcore.presets import EFFORTS, Recipe, Sampling


def _brief(recipe: Recipe) -> Recipe:
    stages = (recipe.stages[0].lasting(25), recipe.stages[1].lasting(75))
    return replace(recipe, stages=stages, sampling=Sampling(None, 24_576))


BRIEF = replace(_brief(EFFORTS[1]), shallow=_brief(EFFORTS[1].suited_to(4)))
"""As effort 1, in a hundred iterations."""
