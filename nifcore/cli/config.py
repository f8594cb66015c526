"""``nif config show``: every setting, its value, and where the value came from."""

from __future__ import annotations

from dataclasses import asdict, fields

import typer

from nifcore.cli.failure import Command
from nifcore.cli.messages import columns, print_json
from nifcore.cli.options import Debug, Json
from nifcore.config import Settings, environment_variable, load, user_file

app = typer.Typer(name="config", no_args_is_help=True, add_completion=False)


@app.callback()
def config() -> None:
    """Show where settings come from."""


@app.command(cls=Command)
def show(json: Json = False, debug: Debug = False) -> None:
    """Print every setting, its value, and where the value came from.

    A flag is stronger than an environment variable, that than ./nif.toml, that than the
    user's own file, that than the default.
    """
    configuration = load()
    values = asdict(configuration.settings)
    for each in fields(Settings):
        if each.metadata["secret"] and values[each.name]:
            values[each.name] = "(set)"
    if json:
        print_json(
            {
                "settings": {
                    name: {"value": value, "source": configuration.sources[name]}
                    for name, value in values.items()
                }
            }
        )
        return
    meanings = {each.name: each.metadata["meaning"] for each in fields(Settings)}
    rows = [["setting", "value", "from", "environment variable", "meaning"]]
    for name, value in values.items():
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        source = configuration.sources[name]
        rows.append([name, shown, source, environment_variable(name), meanings[name]])
    print(columns(rows))
    print(f"\nThe user's own file is {user_file()}")
