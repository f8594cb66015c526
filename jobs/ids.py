"""Identifiers: time-ordered, prefixed by what they name, impossible to guess."""

from __future__ import annotations

import re
import secrets
import threading
import time
import uuid

from jobs.errors import Invalid

# Crockford's base 32: no I, L, O, U, so that an id can be read out loud.
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_JOB = re.compile(r"job_[0-7][0-9A-HJKMNP-TV-Z]{25}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_RANDOM_BITS = 80

_lock = threading.Lock()
_last = 0


def _time_ordered() -> str:
    """Return 26 characters: 48 bits of Unix milliseconds, then 80 random bits (a ULID).

    Within one process every value is greater than the one before, also within a millisecond.
    """
    global _last
    with _lock:
        fresh = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
        # The random step keeps the next id unguessable where the clock did not move on.
        _last = fresh if fresh > _last else _last + 1 + secrets.randbits(64)
        value = _last
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def new_job_id() -> str:
    """Return a new job id: ``job_`` and 26 characters that sort by time of creation."""
    return f"job_{_time_ordered()}"


def new_upload_id() -> str:
    """Return a new upload id, ``upl_...``."""
    return f"upl_{_time_ordered()}"


def new_batch_id() -> str:
    """Return a new batch id, ``bat_...``."""
    return f"bat_{_time_ordered()}"


def new_key_id() -> str:
    """Return a new API key id, ``key_...``; it is no secret."""
    return f"key_{_time_ordered()}"


def new_endpoint_id() -> str:
    """Return a new id of a webhook endpoint, ``whk_...``."""
    return f"whk_{_time_ordered()}"


def new_delivery_id() -> str:
    """Return the id of a delivery that belongs to no job, ``dlv_...``."""
    return f"dlv_{_time_ordered()}"


def new_worker_id(host: str) -> str:
    """Return a new worker id: the host's name and eight random hexadecimal digits."""
    return f"{re.sub(r'[^A-Za-z0-9.-]', '-', host) or 'worker'}-{secrets.token_hex(4)}"


def check_job_id(text: str) -> str:
    """Return ``text`` as a job id in its canonical writing.

    Accepted are our own ids and UUIDs: a client may choose the id of its job, but only one that
    nobody else can guess, or tenants could probe for each other's jobs.

    Raises:
        Invalid: anything else.
    """
    if _JOB.fullmatch(text):
        return text
    try:
        canonical = str(uuid.UUID(text))
    except ValueError:
        canonical = ""
    if canonical != text.lower() or not canonical:
        raise Invalid(f"job id must be job_ and 26 characters, or a UUID; got {text[:80]!r}")
    return canonical


def check_tenant(text: str) -> str:
    """Return ``text`` if it can name a tenant.

    Raises:
        Invalid: not 1 to 63 lower-case letters, digits and hyphens, not beginning with a hyphen.
    """
    if not _TENANT.fullmatch(text):
        raise Invalid(
            "tenant must be 1 to 63 lower-case letters, digits or hyphens and not begin with "
            f"a hyphen; got {text[:80]!r}"
        )
    return text
