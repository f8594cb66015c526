"""The way out for webhooks: every address is looked at before anything is sent to it.

::

    URL ── look the name up, once ──> addresses ── all public? ──> connect to that very address
                                          └── one is not ──> AddressRefused, nothing is sent

Who controls a name can let it lead somewhere else at any moment. So the connection goes to the
address that was looked at, not to the name; the name still goes into ``Host`` and, with TLS, into
SNI and the check of the certificate. Redirects, cookies, proxies and compressed answers are no
matter of this layer, and no other one is put on top of it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
import httpcore2
import httpx2

Resolver = Callable[[str, int], list[str]]
"""Returns the addresses of a host and port, best first; raises OSError if there are none. It blocks
for as long as it takes."""

Vetting = Callable[[str], str | None]
"""Returns why nothing may be sent to an address, None if it may."""

DROPPED_BYTES = 64 * 1024
"""So much of an answer's body is read, and thrown away, so that its sender ends in peace."""
_DROP_SECONDS = 1.0


class AddressRefused(Exception):
    """A host leads to an address that nothing may be sent to."""


class NameUnknown(Exception):
    """A host has no address."""


def resolve(host: str, port: int) -> list[str]:
    """Ask the system for the addresses of a host."""
    rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(row[4][0]) for row in rows))


class Lookup:
    """Looks names up for one message.

    Nothing can end a question to the system: it keeps its thread when nobody waits for the answer
    any more. Who gives threads out can wait for that.

    Args:
        resolver: how names become addresses.
        threads: where it is asked; at least one must be free, or waiting for it counts as asking.
    """

    def __init__(self, resolver: Resolver, threads: Executor) -> None:
        self._resolver = resolver
        self._threads = threads
        self._asked: set[asyncio.Future[list[str]]] = set()

    async def addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host.

        Raises:
            OSError, UnicodeError: there are none.
        """
        loop = asyncio.get_running_loop()
        asked = loop.run_in_executor(self._threads, self._resolver, host, port)
        self._asked.add(asked)
        await asyncio.wait([asked])  # unlike `await asked`, this leaves it alone when cancelled
        return asked.result()

    async def ended(self) -> None:
        """Wait until no thread is asking any more."""
        await asyncio.gather(*self._asked, return_exceptions=True)

    def abandon(self) -> None:
        """Take no answer any more: the loop ends."""
        for each in self._asked:
            each.cancel()


class VettedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that were vetted, and to nothing else.

    Args:
        vet: what may be reached.
        lookup: how names become addresses.
    """

    def __init__(self, vet: Vetting, lookup: Lookup) -> None:
        self._vet = vet
        self._lookup = lookup
        self._sockets = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Look ``host`` up and connect to one of its addresses, if all of them may be reached.

        Raises:
            NameUnknown, AddressRefused.
            httpcore2.ConnectError, httpcore2.ConnectTimeout: none of them answers.
        """
        try:
            addresses = await self._lookup.addresses(host, port)
        except (OSError, UnicodeError) as error:
            raise NameUnknown(f"{host}: {error}") from error
        if not addresses:
            raise NameUnknown(f"{host} has no address")
        for address in addresses:
            reason = self._vet(address)
            if reason is not None:
                raise AddressRefused(f"{host} leads to an address that is {reason}")
        failure: Exception | None = None
        for address in addresses:
            try:
                # Given an address, this looks nothing up.
                return await self._sockets.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        assert failure is not None
        raise failure

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Refuse: no URL leads to a socket of this machine.

        Raises:
            AddressRefused.
        """
        raise AddressRefused("a socket of this machine")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await anyio.sleep(seconds)


@dataclass(frozen=True)
class Answer:
    """What a receiver said: the status, and what it wants us to know about when to come back."""

    status: int
    retry_after: str | None


class WebhookTransport:
    """Posts messages, each over a connection of its own.

    Args:
        vet: what may be reached.
        resolver: how names become addresses.
        threads: where that is asked.
        tls: how certificates are checked; by default as the system does.
    """

    def __init__(
        self,
        vet: Vetting,
        resolver: Resolver,
        threads: Executor,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._vet = vet
        self._resolver = resolver
        self._threads = threads
        self._tls = httpx2.create_ssl_context() if tls is None else tls

    def lookup(self) -> Lookup:
        """Return what looks names up for one message."""
        return Lookup(self._resolver, self._threads)

    async def post(
        self, url: str, headers: dict[str, str], content: bytes, lookup: Lookup
    ) -> Answer:
        """Post a message and return the answer's status; nothing of its body is kept.

        There is no time limit here but for the answer's body, whose end nobody waits for.

        Raises:
            NameUnknown, AddressRefused.
            httpcore2.NetworkError, httpcore2.ProtocolError, OSError: no answer.
        """
        request = httpx2.Request("POST", url, headers=headers, content=content)
        # A connection that is kept may be closed by the other side just when it is used again,
        # which looks like a failure; and its address would not be looked at again.
        async with httpcore2.AsyncConnectionPool(
            ssl_context=self._tls,
            network_backend=VettedNetwork(self._vet, lookup),
            max_keepalive_connections=0,
        ) as connections:
            return await _answer(connections, request, content)


async def _answer(
    connections: httpcore2.AsyncConnectionPool, request: httpx2.Request, content: bytes
) -> Answer:
    target = request.url
    response = await connections.handle_async_request(
        httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(
                scheme=target.raw_scheme,
                host=target.raw_host,
                port=target.port,
                target=target.raw_path,
            ),
            headers=request.headers.raw,
            content=content,
        )
    )
    try:
        found = {name.lower(): value for name, value in response.headers}
        wait = found.get(b"retry-after")
        with suppress(httpcore2.NetworkError, httpcore2.ProtocolError, TimeoutError):
            async with asyncio.timeout(_DROP_SECONDS):
                dropped = 0
                async for piece in response.aiter_stream():
                    dropped += len(piece)
                    if dropped > DROPPED_BYTES:
                        break
        return Answer(response.status, None if wait is None else wait.decode("latin-1"))
    finally:
        await response.aclose()
