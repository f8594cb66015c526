"""``nif import-published``: a file of the paper's own encoder, rewritten as a .nif file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nifcore import config
from nifcore.cli import inputs, outputs
from nifcore.cli.failure import Command
from nifcore.cli.messages import byte_count, print_json, say
from nifcore.cli.options import Debug, Json, NoClobber, Quiet
from nifcore.errors import UsageError

app = typer.Typer(add_completion=False)


@app.command(cls=Command)
def import_published(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="The published encoder's file, or - for stdin.")
    ],
    output: Annotated[str, typer.Argument(metavar="OUT", help="The .nif file, or - for stdout.")],
    configuration: Annotated[
        Path,
        typer.Option("--config", metavar="FILE.yaml", help="The configuration it was made with."),
    ],
    no_clobber: NoClobber = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rewrite a file of the paper's reference encoder. Nothing in it is executed."""
    limits = config.load().settings.limits()
    if json and output == inputs.STDIO:
        raise UsageError("--json and the file both want stdout; name an output file")
    outputs.check(output, source=source, no_clobber=no_clobber)
    from nifcore.published import import_published as rewrite

    data = inputs.read(source, limits)
    text = inputs.read(str(configuration), limits)
    rewritten = rewrite(data, text, limits)
    outputs.write(output, rewritten)
    if json:
        sizes = {"bytes": len(rewritten), "published_bytes": len(data)}
        print_json({"input": source, "output": output} | sizes)
    elif not quiet:
        line = f"{byte_count(len(rewritten))}, was {byte_count(len(data))}"
        if output == inputs.STDIO:
            say(f"stdout: {line}")
        else:
            print(f"{output}: {line}")
