"""One answer per Idempotency-Key: requests that are repeated make one job.

The key belongs to a tenant and stands for one body. A request takes the key before it reads its
body (`begin`), and hands the claim in with the draft; the store binds key and job in the call that
makes the job.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from jobs.database import Database
from jobs.errors import IdempotencyInFlight, IdempotencyMismatch, Invalid
from jobs.record import IdempotencyClaim

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class Replay:
    """The key was used before: ``job_id`` answers, if the body has the same fingerprint."""

    job_id: str
    fingerprint: str


class Idempotency:
    """Idempotency keys of all tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, tenant: str, key: str) -> IdempotencyClaim | Replay:
        """Take a key for one request.

        Raises:
            Invalid: the key is not 1 to 255 printable ASCII characters without spaces.
            IdempotencyInFlight: another request has it and is not done.
        """
        if not _KEY.fullmatch(key):
            raise Invalid(
                "an idempotency key is 1 to 255 printable ASCII characters without spaces; "
                f"got {key[:80]!r}"
            )
        claim = IdempotencyClaim(
            tenant, hashlib.sha256(key.encode()).hexdigest(), secrets.token_hex(8)
        )
        match self._database.run("idempotency_begin", tenant, claim.digest, claim.nonce):
            case ["replay", job_id, fingerprint]:
                return Replay(job_id, fingerprint)
            case ["in_flight", milliseconds]:
                raise IdempotencyInFlight(max(1.0, int(milliseconds) / 1000))
        return claim

    @staticmethod
    def check(replay: Replay, fingerprint: str) -> None:
        """Raise `IdempotencyMismatch` unless the repeated request has the same body."""
        if not secrets.compare_digest(replay.fingerprint, fingerprint):
            raise IdempotencyMismatch(replay.job_id)

    def abandon(self, claim: IdempotencyClaim) -> None:
        """Give a key back whose request made no job; a bound key stays."""
        self._database.run("idempotency_abandon", claim.tenant, claim.digest, claim.nonce)
