"""The commands of the ``nif`` program, each loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

_MODULES = {
    "encode": "nifcore.cli.encode",
    "decode": "nifcore.cli.decode",
    "info": "nifcore.cli.info",
    "verify": "nifcore.cli.verify",
    "compare": "nifcore.cli.compare",
    "import-published": "nifcore.cli.import_published",
    "presets": "nifcore.cli.presets",
    "bench": "nifcore.cli.bench",
    "remote": "nifcore.cli.remote",
    "admin": "nifcore.cli.admin",
    "config": "nifcore.cli.config",
}
"""Command -> the module whose ``app`` it is, in the order of ``nif --help``."""


class _Commands(MutableMapping[str, Any]):
    """The commands by name, so that ``nif info`` does not pay for the imports of the others."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            module = import_module(_MODULES[name])
            self._loaded[name] = typer.main.get_command(module.app)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in _MODULES

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


class _Program(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()


app = typer.Typer(
    cls=_Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import nifcore

        print(f"nif {nifcore.__version__}")
        raise typer.Exit


@app.callback()
def nif(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Neural image codec: a picture stored as the weights of a small network.

    nif encode photo.png makes photo.nif; nif decode photo.nif makes photo.png.
    """
