"""The last resort: fakeredis behind a unix socket, in a process of its own. Nothing is durable.

``python -m jobs.fake_redis SOCKET`` serves until it is ended.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys

from fakeredis import TcpFakeServer


class UnixFakeServer(TcpFakeServer):
    """fakeredis's server on a unix socket."""

    address_family = socket.AF_UNIX
    daemon_threads = True

    def __init__(self, path: str) -> None:
        self._clients = itertools.count()
        # The address of a unix socket is a path, which the base class does not expect.
        super().__init__(path, server_version=(7, 2))  # type: ignore[arg-type]

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection; clients of a unix socket have no address, so each gets a number."""
        connection, _ = self.socket.accept()
        return connection, ("unix", next(self._clients))


def main() -> None:
    """Serve on the socket that the command line names."""
    path = sys.argv[1]
    if os.path.exists(path):
        os.unlink(path)
    mask = os.umask(0o077)
    server = UnixFakeServer(path)
    os.umask(mask)
    server.serve_forever()


if __name__ == "__main__":
    main()
