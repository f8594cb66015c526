"""API keys. Only their SHA-256 is kept: 256 random bits need no slower hash.

Keys live in Redis and, without last use, in the blob store, from where `jobs.reconcile` brings
them back.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from jobs.blobs import Blobs
from jobs.database import Database, pairs
from jobs.errors import BlobExists, BlobNotFound, Invalid, NotFound
from jobs.ids import check_tenant, new_key_id
from jobs.record import from_milliseconds, to_milliseconds

log = logging.getLogger(__name__)

KEYS_PREFIX = "_system/keys/"
_PLAINTEXT = re.compile(r"nif_[A-Za-z0-9_-]{32,200}")
NOTE_USE_MS = 60_000
"""The last use of a key is noted at most so often."""


class Scope(StrEnum):
    """What a key may do. ``admin`` may do everything, for every tenant."""

    JOBS_WRITE = "jobs:write"
    JOBS_READ = "jobs:read"
    ADMIN = "admin"


@dataclass(frozen=True)
class KeyLimits:
    """A key's own limits; None leaves the setting in force, 0 = any number."""

    requests_per_minute: int | None = None
    jobs_per_day: int | None = None
    bytes_per_day: int | None = None
    active_jobs: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and (isinstance(value, bool) or value < 0):
                raise Invalid(f"{name} must be a whole number from 0; got {value!r}")


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret."""

    id: str
    tenant: str
    scopes: frozenset[Scope]
    name: str
    limits: KeyLimits
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


def digest(plaintext: str) -> str:
    """Return what is stored of a key."""
    return hashlib.sha256(plaintext.encode()).hexdigest()


def is_plaintext(text: str) -> bool:
    """Tell whether a text could be a key at all."""
    return _PLAINTEXT.fullmatch(text) is not None


def new_plaintext() -> str:
    """Return a new key: ``nif_`` and 256 random bits in 43 characters."""
    return "nif_" + base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")


ADMIN_TENANT = "admin"
"""Whose jobs the first administrator's key makes."""
ADMIN_KEY_NAME = "first administrator"


class KeyRing:
    """All API keys."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    def create(
        self,
        tenant: str,
        scopes: Iterable[Scope],
        *,
        name: str = "",
        limits: KeyLimits | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key and return it with its plaintext, which is kept nowhere.

        Raises:
            Invalid: a bad tenant, no scope, an unknown one, or a name of more than 200 characters.
        """
        plaintext = new_plaintext()
        key = self._checked(new_key_id(), tenant, scopes, name, limits, expires_at)
        fields = _fields(key, digest(plaintext))
        self._blobs.put(_blob_key(key.id), json.dumps(fields).encode(), media_type=_JSON)
        self.store(fields)
        return key, plaintext

    def ensure(
        self, plaintext: str, tenant: str, scopes: Iterable[Scope], *, name: str = ""
    ) -> ApiKey:
        """Make sure that a key whose plaintext the operator chose is there, and return it.

        It is in force unless it was revoked or has expired. It is not written to the blob store:
        the settings bring it back at every start. Its id follows from its digest, so that its
        revocation, which is written there, is found without Redis too.

        Raises:
            Invalid: not ``nif_`` and 32 to 200 letters, digits, hyphens and underscores.
        """
        if not is_plaintext(plaintext):
            raise Invalid("an API key is nif_ and 32 to 200 letters, digits, hyphens, underscores")
        digested = digest(plaintext)
        fields = self._database.call("hgetall", self._database.key("key", digested))
        if not fields:
            key = self._checked(_id_of_digest(digested), tenant, scopes, name, None, None)
            fields = _fields(key, digested) | self._revocation(key.id)
            self.store(fields)
        found = key_from_hash(fields)
        if found.revoked_at is not None:
            log.warning("key %s of the settings was revoked: it opens nothing", found.id)
        return found

    def ensure_admin(self, plaintext: str) -> ApiKey:
        """Make sure that the administrator's key of the settings is there, as `ensure` does."""
        return self.ensure(plaintext, ADMIN_TENANT, frozenset(Scope), name=ADMIN_KEY_NAME)

    def create_admin(self) -> str | None:
        """Make the first administrator's key and return its plaintext; None if there is one."""
        if any(Scope.ADMIN in key.scopes and key.revoked_at is None for key in self.list(None)):
            return None
        _, plaintext = self.create(ADMIN_TENANT, frozenset(Scope), name=ADMIN_KEY_NAME)
        return plaintext

    def verify(self, plaintext: str) -> ApiKey | None:
        """Return the key, or None if it is unknown, revoked or expired.

        The last use is noted, at most once a minute.
        """
        if not is_plaintext(plaintext):
            return None
        fields = pairs(self._database.run("verify_key", digest(plaintext), NOTE_USE_MS))
        return key_from_hash(fields) if fields else None

    def get(self, key_id: str) -> ApiKey:
        """Return a key, revoked ones too.

        Raises:
            NotFound.
        """
        fields = self._database.call("hgetall", self._hash_key(key_id))
        if not fields:
            raise NotFound("key", key_id)
        return key_from_hash(fields)

    def list(self, tenant: str | None = None) -> tuple[ApiKey, ...]:
        """Return all keys, or one tenant's, oldest first, revoked ones too."""
        digests = self._database.call("hgetall", self._database.key("keys"))
        with self._database.pipeline() as pipeline:
            for each in set(digests.values()):
                pipeline.hgetall(self._database.key("key", each))
            found = [key_from_hash(fields) for fields in pipeline.execute() if fields]
        found.sort(key=lambda key: (key.created_at, key.id))
        return tuple(key for key in found if tenant is None or key.tenant == tenant)

    def in_force(self, key_ids: Iterable[str]) -> frozenset[str]:
        """Return those of the keys that are neither revoked nor expired nor gone.

        Raises:
            StoreUnavailable.
        """
        ids = list(key_ids)
        now = self._database.now_milliseconds()
        with self._database.pipeline() as pipeline:
            for key_id in ids:
                pipeline.hget(self._database.key("keys"), key_id)
            digests = pipeline.execute()
            for each in digests:
                pipeline.hmget(self._database.key("key", each or ""), "id", "revoked", "expires")
            found = pipeline.execute()
        return frozenset(
            key_id
            for key_id, (known, revoked, expires) in zip(ids, found, strict=True)
            if known and not revoked and not (expires and int(expires) <= now)
        )

    def revoke(self, key_id: str) -> ApiKey:
        """Put a key out of force, at once and for good; a revoked one stays as it is.

        Raises:
            NotFound.
            BlobsUnavailable: it is out of force, but not yet durably; revoke it again.
        """
        key = self.get(key_id)
        if key.revoked_at is None:
            now = self._database.now_milliseconds()
            self._database.call("hset", self._hash_key(key_id), "revoked", str(now))
        revoked = self.get(key_id)
        assert revoked.revoked_at is not None
        note = str(to_milliseconds(revoked.revoked_at)).encode()
        with suppress(BlobExists):  # noted before
            self._blobs.put(_blob_key(key_id, "revoked"), note, media_type="text/plain")
        return revoked

    def store(self, fields: Mapping[str, str]) -> None:
        """Write a key as the blob store has it; one that is known keeps its last use."""
        with self._database.pipeline() as pipeline:
            pipeline.hset(self._database.key("key", fields["digest"]), mapping=dict(fields))
            pipeline.hset(self._database.key("keys"), fields["id"], fields["digest"])
            pipeline.execute()

    def restore(self) -> int:
        """Bring back every key of the blob store that Redis has not, and return how many."""
        restored = 0
        after: str | None = None
        while True:
            page = self._blobs.list(KEYS_PREFIX, after=after)
            for info in page.items:
                if not info.key.endswith("/key.json"):
                    continue
                fields = json.loads(self._blobs.get(info.key))
                fields |= self._revocation(fields["id"])
                known = self._database.call("hexists", self._database.key("keys"), fields["id"])
                if not known or "revoked" in fields:
                    self.store(fields)
                    restored += not known
            if page.next is None:
                return restored
            after = page.next

    def _checked(
        self,
        key_id: str,
        tenant: str,
        scopes: Iterable[Scope],
        name: str,
        limits: KeyLimits | None,
        expires_at: datetime | None,
    ) -> ApiKey:
        try:
            wanted = frozenset(Scope(scope) for scope in scopes)
        except ValueError as error:
            raise Invalid(f"{error}; accepted are {', '.join(Scope)}") from error
        if not wanted:
            raise Invalid(f"a key needs a scope of {', '.join(Scope)}")
        if len(name) > 200:
            raise Invalid(f"a key's name may have 200 characters; got {len(name)}")
        check_tenant(tenant)
        now = self._database.now()
        return ApiKey(key_id, tenant, wanted, name, limits or KeyLimits(), now, expires_at)

    def _revocation(self, key_id: str) -> dict[str, str]:
        """Return the field that the blob store adds to a key that was revoked."""
        try:
            return {"revoked": self._blobs.get(_blob_key(key_id, "revoked")).decode("ascii")}
        except BlobNotFound:
            return {}

    def _hash_key(self, key_id: str) -> str:
        found = self._database.call("hget", self._database.key("keys"), key_id)
        if found is None:
            raise NotFound("key", key_id)
        return self._database.key("key", found)


_JSON = "application/json"


def _id_of_digest(digested: str) -> str:
    return f"key_{hashlib.sha256(digested.encode()).hexdigest()[:26]}"


def _blob_key(key_id: str, name: str = "key.json") -> str:
    return f"{KEYS_PREFIX}{key_id}/{name}"


def _fields(key: ApiKey, key_digest: str) -> dict[str, str]:
    fields = {
        "id": key.id,
        "digest": key_digest,
        "tenant": key.tenant,
        "scopes": " ".join(sorted(key.scopes)),
        "name": key.name,
        "limits": json.dumps({k: v for k, v in asdict(key.limits).items() if v is not None}),
        "created": str(to_milliseconds(key.created_at)),
    }
    if key.expires_at is not None:
        fields["expires"] = str(to_milliseconds(key.expires_at))
    return fields


def key_from_hash(fields: Mapping[str, Any]) -> ApiKey:
    """Build a key from the fields of its Redis hash."""

    def moment(name: str) -> datetime | None:
        text = fields.get(name)
        return from_milliseconds(int(text)) if text else None

    return ApiKey(
        id=fields["id"],
        tenant=fields["tenant"],
        scopes=frozenset(Scope(scope) for scope in fields["scopes"].split()),
        name=fields["name"],
        limits=KeyLimits(**json.loads(fields["limits"])),
        created_at=from_milliseconds(int(fields["created"])),
        expires_at=moment("expires"),
        revoked_at=moment("revoked"),
        last_used_at=moment("used"),
    )
