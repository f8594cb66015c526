"""``nif remote``: the compression service from the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nifcore import config
from nifcore.cli import inputs, outputs
from nifcore.cli.failure import Command, exit_code, report
from nifcore.cli.messages import byte_count, columns, print_json, say
from nifcore.cli.options import Debug, Json, NoClobber, OutputDir, Quiet, complete_preset
from nifcore.errors import NifError, RemoteError
from nifcore.events import ProgressEvent

if TYPE_CHECKING:
    from nifcore.client import Client, RemoteJob

app = typer.Typer(name="remote", no_args_is_help=True, add_completion=False)

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help=f"Where the service is (default {config.Settings.remote_url}). The key is taken from "
        "NIF_API_KEY or a configuration file, where other users cannot see it.",
    ),
]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of jobs.")]


@app.callback()
def remote() -> None:
    """Let the compression service do the work.

    The service is named by --url or NIF_REMOTE_URL, the API key by NIF_API_KEY.
    """


@app.command(cls=Command)
def submit(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Pictures, or - for stdin.")
    ],
    wait: Annotated[
        bool,
        typer.Option("--wait", "-w", help="Wait for the results and download them."),
    ] = False,
    effort: Annotated[
        int | None,
        typer.Option("--effort", "-e", min=1, max=9, metavar="N", help="How long to fit, 1 to 9."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="A published recipe instead of an effort.",
            autocompletion=complete_preset,
        ),
    ] = None,
    quality: Annotated[
        float | None,
        typer.Option("--quality", "-Q", metavar="N", help="1 to 100, a scale of rates."),
    ] = None,
    psnr: Annotated[
        float | None, typer.Option("--psnr", metavar="DB", help="The least PSNR.")
    ] = None,
    bpp: Annotated[
        float | None, typer.Option("--bpp", metavar="RATE", help="The most bits per pixel.")
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option("--max-bytes", metavar="N", help="The most bytes of the file.")
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option("--priority", min=0, max=9, metavar="N", help="9 is worked on first."),
    ] = None,
    output_dir: OutputDir = None,
    url: Url = None,
    json: Json = False,
    quiet: Quiet = False,
    no_clobber: NoClobber = False,
    debug: Debug = False,
) -> None:
    """Send pictures to the service and print the ids of their jobs.

    With --wait the results are downloaded too: beside the pictures, or into --output-dir.
    """
    settings = config.load({"remote_url": url, "debug": debug or None}).settings
    asked = {
        "effort": effort,
        "preset": preset,
        "quality": quality,
        "psnr": psnr,
        "bpp": bpp,
        "max_bytes": max_bytes,
        "priority": priority,
    }
    targets = {}
    if wait:
        for file in files:
            ((_, target),) = outputs.pair([file], output_dir, ".nif")
            outputs.check(target, source=file, no_clobber=no_clobber)
            targets[file] = target

    def one(service: Client, file: str) -> None:
        data = inputs.read(file, settings.limits())
        name = None if file == inputs.STDIO else Path(file).name
        job = service.submit(data, filename=name, **asked)
        if not wait:
            _tell(job, json, job.id, input=file)
            return
        ended = _followed(service, job.id, file, quiet)
        _finished(service, ended, targets[file], json, quiet, input=file)

    _each(files, settings, json, one)


@app.command(cls=Command)
def status(ids: Ids, url: Url = None, json: Json = False, debug: Debug = False) -> None:
    """Show how far jobs are."""
    settings = config.load({"remote_url": url, "debug": debug or None}).settings

    def one(service: Client, job_id: str) -> None:
        job = service.get(job_id)
        _tell(job, json, f"{job.id}: {_described(job)}")

    _each(ids, settings, json, one)


@app.command(cls=Command)
def wait(
    ids: Ids,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0, help="Give up waiting after so long."),
    ] = None,
    url: Url = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Wait until jobs have ended. Exit code 7 when one failed or was cancelled."""
    settings = config.load({"remote_url": url, "debug": debug or None}).settings

    def one(service: Client, job_id: str) -> None:
        job = _followed(service, job_id, job_id, quiet, timeout)
        _check_success(job)
        if json or not quiet:
            _tell(job, json, f"{job.id}: {_described(job)}")

    _each(ids, settings, json, one)


@app.command(cls=Command)
def download(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a job that succeeded.")],
    output: Annotated[
        str | None,
        typer.Argument(
            metavar="[OUT]", help="Where to write; - is stdout. Defaults to the picture's name."
        ),
    ] = None,
    url: Url = None,
    json: Json = False,
    quiet: Quiet = False,
    no_clobber: NoClobber = False,
    debug: Debug = False,
) -> None:
    """Download the result of a job."""
    settings = config.load({"remote_url": url, "debug": debug or None}).settings
    with _service(settings) as service:
        job = service.get(job_id)
        # The service's name for it is only a name: no folder is taken from it.
        stem = Path(Path(job.filename or job.id).name).stem or job.id
        target = output or f"{stem}.nif"
        outputs.check(target, source=inputs.STDIO, no_clobber=no_clobber)
        _finished(service, job, target, json and target != inputs.STDIO, quiet)


@app.command(cls=Command)
def cancel(ids: Ids, url: Url = None, json: Json = False, debug: Debug = False) -> None:
    """Cancel jobs: at once where they wait, within seconds where they run."""
    settings = config.load({"remote_url": url, "debug": debug or None}).settings

    def one(service: Client, job_id: str) -> None:
        job = service.cancel(job_id)
        asked = "cancelled" if job.state == "cancelled" else "will be cancelled"
        _tell(job, json, f"{job.id}: {asked}")

    _each(ids, settings, json, one)


@app.command("list", cls=Command)
def list_jobs(
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            metavar="STATE",
            help="queued, running, succeeded, failed or cancelled; may be given again.",
        ),
    ] = None,
    most: Annotated[
        int, typer.Option("--most", metavar="N", min=1, help="Show so many at most.")
    ] = 20,
    url: Url = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List your jobs, newest first."""
    settings = config.load({"remote_url": url, "debug": debug or None}).settings
    with _service(settings) as service:
        found = list(service.jobs(most=most, state=state or None))
    if json:
        for job in found:
            print_json({"job": dict(job.values)})
        return
    rows = [["id", "state", "picture", ""]]
    rows += [[job.id, job.state, job.filename or "-", _details(job)] for job in found]
    print(columns(rows))


def _each(
    names: list[str],
    settings: config.Settings,
    as_json: bool,
    one: Callable[[Client, str], None],
) -> None:
    """Do ``one`` for every name; the others are still done where one fails."""
    failed = 0
    with _service(settings) as service:
        for name in names:
            try:
                one(service, name)
            except NifError as error:
                if settings.debug:
                    raise
                report(error, as_json=as_json, input_name=name)
                failed = failed or exit_code(error)
    if failed:
        raise typer.Exit(failed)


def _service(settings: config.Settings) -> Client:
    from nifcore.client import Client

    return Client(settings.remote_url, settings.api_key or None)


def _followed(
    service: Client, job_id: str, title: str, quiet: bool, timeout: float | None = None
) -> RemoteJob:
    with _display(title, quiet) as show:
        return service.wait(job_id, progress=show, timeout=timeout)


@contextmanager
def _display(title: str, quiet: bool) -> Iterator[Callable[[RemoteJob], None]]:
    """Show a running job as a local encode is shown, where there is a terminal."""
    import sys

    if quiet or not sys.stderr.isatty():
        yield lambda job: None
        return
    from nifcore.cli.progress import Display

    with Display(title, 0) as display:

        def show(job: RemoteJob) -> None:
            if job.progress is not None:
                display.show(_event(job.progress))

        yield show


def _event(progress: Mapping[str, Any]) -> ProgressEvent:
    known = ("step", "steps", "iteration", "iterations", "tile", "tiles", "loss", "psnr_db", "bpp")
    values = {name: progress[name] for name in (*known, "seconds", "eta_seconds")}
    return ProgressEvent(phase=progress["phase"], **values)


def _check_success(job: RemoteJob) -> None:
    if job.state != "succeeded":
        why = "" if job.failure is None else f": {job.failure['message']}"
        raise RemoteError(f"{job.id} {job.state}{why}")


def _finished(
    service: Client, job: RemoteJob, target: str, as_json: bool, quiet: bool, **more: str
) -> None:
    """Download the result of a job that ended well."""
    if job.ended:
        _check_success(job)
    data = service.result(job.id)
    outputs.write(target, data)
    if as_json:
        print_json({**more, "output": target, "bytes": len(data), "job": dict(job.values)})
    elif not quiet:
        line = f"{byte_count(len(data))}{_measured(job)}"
        if target == inputs.STDIO:
            say(f"stdout: {line}")
        else:
            print(f"{target}: {line}")


def _tell(job: RemoteJob, as_json: bool, text: str, **more: str) -> None:
    if as_json:
        print_json({**more, "job": dict(job.values)})
    else:
        print(text, flush=True)


def _described(job: RemoteJob) -> str:
    details = _details(job)
    return f"{job.state}, {details}" if details else job.state


def _details(job: RemoteJob) -> str:
    if job.state == "queued" and job.values.get("position") is not None:
        return f"place {job.values['position']} in the queue"
    if job.state == "running" and job.progress is not None:
        done, of = job.progress["iteration"], job.progress["iterations"]
        share = f" {done / of:.0%}" if of else ""
        left = job.progress["eta_seconds"]
        return f"{job.progress['phase']}{share}" + ("" if left is None else f", {left:.0f} s left")
    if job.result is not None:
        return f"{byte_count(job.result['size'])}{_measured(job)}"
    return "" if job.failure is None else str(job.failure["message"])


def _measured(job: RemoteJob) -> str:
    result = job.result or {}
    parts = []
    if result.get("bpp") is not None:
        parts.append(f"{result['bpp']:.3f} bpp")
    if result.get("psnr_db") is not None:
        parts.append(f"{result['psnr_db']:.2f} dB")
    return "".join(f", {each}" for each in parts)
