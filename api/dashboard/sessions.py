"""Who is signed in at the dashboard: sessions in Redis, known by the hash of a cookie."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from jobs import ApiKey
from jobs.database import Database
from jobs.record import from_milliseconds

LIFETIME = timedelta(hours=12)
"""A session ends after this, however much it is used."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class Session:
    """One browser that is signed in.

    Attributes:
        digest: SHA-256 of the cookie; the cookie itself is kept by the browser alone.
        key_id: of the API key that was used to sign in.
        csrf: what every form has to send along.
        expires_at: when it ends.
    """

    digest: str
    key_id: str
    csrf: str
    expires_at: datetime


@dataclass(frozen=True)
class Flash:
    """A sentence for the next page: ``kind`` is ``good`` or ``bad``."""

    kind: str
    text: str


class Sessions:
    """All sessions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, key: ApiKey) -> tuple[str, Session]:
        """Begin a session and return the cookie's value with it."""
        token = secrets.token_urlsafe(32)
        expires = self._database.now() + LIFETIME
        session = Session(_digest(token), key.id, secrets.token_urlsafe(32), expires)
        name = self._name(session.digest)
        milliseconds = round(expires.timestamp() * 1000)
        with self._database.pipeline() as pipeline:
            values = {"key": key.id, "csrf": session.csrf, "expires": str(milliseconds)}
            pipeline.hset(name, mapping=values)
            pipeline.pexpireat(name, milliseconds)
            pipeline.execute()
        return token, session

    def find(self, token: str) -> Session | None:
        """Return the session of a cookie, or None if there is none (any more)."""
        if not _TOKEN.fullmatch(token):
            return None
        digest = _digest(token)
        found = self._database.call("hgetall", self._name(digest))
        if not found:
            return None
        expires = from_milliseconds(int(found["expires"]))
        return Session(digest, found["key"], found["csrf"], expires)

    def end(self, session: Session) -> None:
        """End a session; one that ended already is fine."""
        self._database.call("delete", self._name(session.digest))

    def put_flash(self, session: Session, flash: Flash) -> None:
        """Keep a sentence for the next page that is shown."""
        text = json.dumps([flash.kind, flash.text[:500]])
        name = self._name(session.digest)
        with self._database.pipeline() as pipeline:
            pipeline.hset(name, "flash", text)
            # Were the session gone just now, this must not bring it back for ever.
            pipeline.pexpireat(name, round(session.expires_at.timestamp() * 1000))
            pipeline.execute()

    def take_flash(self, session: Session) -> Flash | None:
        """Return what `put_flash` kept, and forget it."""
        name = self._name(session.digest)
        with self._database.pipeline() as pipeline:
            pipeline.hget(name, "flash")
            pipeline.hdel(name, "flash")
            text = pipeline.execute()[0]
        return Flash(*json.loads(text)) if text else None

    def _name(self, digest: str) -> str:
        return self._database.key("session", digest)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
