"""How a command ends when something goes wrong: one line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand

from nifcore import config
from nifcore.cli.messages import print_json
from nifcore.errors import Cancelled, DeviceError, NifError
from nifcore.output import output_error


class Command(TyperCommand):
    """A command whose errors become one clear line and the exit code of their class.

    An error that nobody foresaw is reported in one line too; its traceback is shown with
    ``--debug`` or the setting ``debug``.
    """

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        # typer puts required arguments in braces, which says nothing here.
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            # A full disk behind a redirected stdout must be noticed while it can be reported.
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            failure: Exception = Cancelled("stopped")
        except Exception as error:
            if ctx.params.get("debug") or config.debugging():
                raise
            failure = error
            if isinstance(error, OSError) and error.filename is None:
                # Files are opened by name and their errors are converted there: this is stdout.
                failure = output_error("stdout", error)
        else:
            return result
        report(failure, as_json=bool(ctx.params.get("json")))
        raise typer.Exit(exit_code(failure))


def exit_code(error: Exception) -> int:
    """Return the exit code for an error, as ``docs/cli.md`` lists them."""
    if isinstance(error, NifError):
        return error.exit_code
    return DeviceError.exit_code if isinstance(error, MemoryError) else NifError.exit_code


def report(error: Exception, *, as_json: bool, input_name: str | None = None) -> None:
    """Print an error as one line on stderr and, for ``--json``, as one object on stdout."""
    kind = type(error).__name__
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        text = f"out of memory. {text}".strip()
    elif not isinstance(error, NifError):
        text = f"unexpected {kind}: {text} (--debug shows where)"
    place = f"{input_name}: " if input_name is not None and input_name not in text else ""
    print(f"nif: error: {place}{text}", file=sys.stderr)
    try:
        if as_json:
            described: dict[str, object] = {} if input_name is None else {"input": input_name}
            described["error"] = {"type": kind, "message": text, "exit_code": exit_code(error)}
            print_json(described)
        sys.stdout.flush()
    except OSError:
        # stdout itself is what failed. What is left in its buffer goes nowhere, so that the
        # interpreter does not stumble over it at exit and change the code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
