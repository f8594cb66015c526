"""``nif admin``: for the person who runs the compression service, at the machine it runs on."""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from typing import Any

import typer

from nifcore.cli.failure import Command
from nifcore.cli.messages import print_json, say
from nifcore.cli.options import Debug, Json

app = typer.Typer(name="admin", no_args_is_help=True, add_completion=False)


@app.callback()
def admin() -> None:
    """Look after the compression service: where it runs, and with its own NIF_ variables."""


@app.command(cls=Command)
def reconcile(json: Json = False, debug: Debug = False) -> None:
    """Bring every job and API key that the storage knows back into Redis.

    After Redis lost its data or was restored from an old backup. It only adds, can be repeated,
    and may run while the service works.
    """
    # By name: the codec does not depend on the service, and is used without it.
    jobs: Any = import_module("jobs")
    settings = jobs.load_settings()
    with jobs.RedisServer.join(settings) as redis:
        settings = settings.model_copy(update={"redis_url": redis.url})
        with jobs.open_service(settings, wakeups=jobs.NoWakeups()) as service:
            done = jobs.reconcile(service)
    if json:
        print_json(asdict(done))
    else:
        print(
            f"{done.jobs} jobs in the storage: {done.imported} brought back, "
            f"{done.advanced} brought up to date; {done.keys} keys brought back, "
            f"{done.garbage} blobs without a job removed"
        )
    if done.unreadable:
        say(f"{done.unreadable} jobs cannot be read; the log above names them")
        raise typer.Exit(1)
