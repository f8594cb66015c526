"""``nif presets``: what each effort level and each published recipe runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from nifcore.cli.failure import Command
from nifcore.cli.messages import columns, print_json
from nifcore.cli.options import Debug, Json

if TYPE_CHECKING:
    from nifcore.header import NetShape
    from nifcore.presets import Recipe


app = typer.Typer(add_completion=False)


@app.command(cls=Command)
def presets(json: Json = False, debug: Debug = False) -> None:
    """List the effort levels and the published recipes, and what each runs."""
    from nifcore.presets import EFFORTS, PRESETS

    if json:
        print_json(
            {
                "efforts": {str(level): asdict(recipe) for level, recipe in EFFORTS.items()},
                "presets": {name: asdict(recipe) for name, recipe in PRESETS.items()},
            }
        )
        return
    levels = [["effort", "fits and quantises", "optimiser", ""]]
    levels += [
        [str(level), _work(recipe), _optimisers(recipe), recipe.summary]
        for level, recipe in EFFORTS.items()
    ]
    print(columns(levels))
    print("\nThe network's sizes follow from the target. A pass is every pixel used once.\n")
    published = [["preset", "fits and quantises", "optimiser", "network", "modulation", ""]]
    published += [
        [
            name,
            _work(recipe),
            _optimisers(recipe),
            _sizes(recipe.genesis),
            _sizes(recipe.modulation),
            recipe.summary,
        ]
        for name, recipe in PRESETS.items()
    ]
    print(columns(published))


def _work(recipe: Recipe) -> str:
    """Say what the stages do: ``10x150 + 5x40 passes``."""
    lengths = [
        f"{stage.steps}x{stage.length}" if stage.steps > 1 else str(stage.length)
        for stage in recipe.stages
    ]
    return f"{' + '.join(lengths)} {recipe.stages[-1].unit}"


def _optimisers(recipe: Recipe) -> str:
    names = [stage.optimiser.name for stage in recipe.stages if stage.optimiser is not None]
    return ", ".join(dict.fromkeys(names))


def _sizes(shape: NetShape | None) -> str:
    return "-" if shape is None else " ".join(map(str, shape.hidden)) + f" x{shape.frequencies}"
