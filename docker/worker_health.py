"""Health check of a worker's container: was the worker here heard of within a lease?

Exits with 0 if so, else with 1 and the reason. A worker cannot be healthy while Redis does not
answer: it takes no jobs then.
"""

from __future__ import annotations

import socket
import sys

from jobs.database import Database, connect
from jobs.errors import JobsError
from jobs.settings import load_settings
from jobs.workers import Workers


def main() -> str | None:
    """Return what is wrong, or None."""
    try:
        settings = load_settings()
        if settings.redis_url is None:
            return "NIF_REDIS_URL is not set"
        client = connect(
            settings.redis_url, timeout_seconds=settings.redis_timeout_seconds, connections=1
        )
        database = Database(client, settings)
        try:
            statuses = Workers(database, settings).list()
        finally:
            database.close()
    except JobsError as error:
        return str(error)
    host = socket.gethostname()
    if any(each.alive and each.info.host == host for each in statuses):
        return None
    return f"no worker on {host} was heard of in the last {settings.lease_seconds:g} s"


if __name__ == "__main__":
    sys.exit(main())
