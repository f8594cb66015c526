"""``python -m worker encode`` and ``python -m worker light``."""

from __future__ import annotations

import argparse
import socket

from jobs.ids import new_worker_id
from jobs.record import DEFAULT_QUEUE
from jobs.settings import Settings, load_settings


def run_encode(settings: Settings, queue: str) -> None:
    """Be an encode worker until told to stop."""
    from worker.app import make_app
    from worker.tasks import install

    worker = new_worker_id(socket.gethostname())
    app = make_app(settings, queue=queue)
    install(app, settings, worker=worker, queue=queue)
    arguments = [
        "--pool=prefork",
        "--concurrency=1",
        f"--hostname=encode@{worker}",
        f"--queues={queue}",
        f"--loglevel={settings.log_level}",
        # Workers have nothing to say to each other, and starting is faster without.
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
    ]
    app.worker_main(["--quiet", "worker", *arguments])


def main() -> None:
    """Read the command line and be that worker."""
    parser = argparse.ArgumentParser(
        prog="python -m worker", description="A worker of the service."
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    encode = kinds.add_parser("encode", help="encodes pictures, one at a time")
    encode.add_argument("--queue", default=DEFAULT_QUEUE, help="queue to take jobs from")
    kinds.add_parser("light", help="looks for lost jobs and does other small things")
    arguments = parser.parse_args()
    settings = load_settings()
    if arguments.kind == "encode":
        run_encode(settings, arguments.queue)
    else:
        from worker.light import run

        run(settings)


if __name__ == "__main__":
    main()
