"""Secrets that webhooks are signed with, and how one takes the place of another.

After a rotation the old secret signs too for a while, so that a receiver can change over without
missing anything: a message carries one signature per secret, and one that fits is enough.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jobs.record import from_milliseconds, to_milliseconds

SECRET_PREFIX = "whsec_"
_SECRET_BYTES = 32
MAX_SECRETS = 5
"""Secrets in force at one time; with one rotation more the oldest goes early."""


@dataclass(frozen=True)
class SigningSecret:
    """A secret; ``expires_at`` is None for the one that stays.

    Attributes:
        secret: ``whsec_`` and base 64; not shown by ``repr``.
    """

    secret: str = field(repr=False)
    created_at: datetime
    expires_at: datetime | None = None


def new_secret() -> str:
    """Return a new secret: ``whsec_`` and 256 random bits in base 64."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def secrets_from_text(text: str | None) -> tuple[SigningSecret, ...]:
    """Read what the scripts keep, newest first."""
    rows: list[dict[str, Any]] = json.loads(text) if text else []
    return tuple(
        SigningSecret(
            secret=row["secret"],
            created_at=from_milliseconds(int(row["created"])),
            expires_at=from_milliseconds(int(row["expires"])) if "expires" in row else None,
        )
        for row in rows
    )


def secrets_to_text(found: Iterable[SigningSecret]) -> str:
    """Write secrets as the scripts keep them."""
    rows = []
    for each in found:
        row = {"secret": each.secret, "created": str(to_milliseconds(each.created_at))}
        if each.expires_at is not None:
            row["expires"] = str(to_milliseconds(each.expires_at))
        rows.append(row)
    return json.dumps(rows)


def in_force(found: Iterable[SigningSecret], now: datetime) -> tuple[SigningSecret, ...]:
    """Return the secrets that sign at ``now``, newest first."""
    return tuple(each for each in found if each.expires_at is None or each.expires_at > now)
