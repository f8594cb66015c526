"""What a webhook's URL may look like. Where it leads is looked at again with every sending."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from jobs.addresses import parse_networks, refusal
from jobs.errors import Invalid
from jobs.settings import Settings

MAX_URL_CHARACTERS = 2048


def check_webhook_url(text: str, settings: Settings) -> str:
    """Return ``text`` if it may be a webhook's URL.

    That is an absolute ``https://`` URL of printable ASCII without user name and fragment; with
    ``NIF_WEBHOOK_ALLOW_INSECURE`` also ``http://``. A host that is written as an address must be a
    public one.

    Raises:
        Invalid: anything else; the message says what is wrong.
    """
    schemes = ("https", "http") if settings.webhook_allow_insecure else ("https",)
    if len(text) > MAX_URL_CHARACTERS:
        raise Invalid(f"a URL may have {MAX_URL_CHARACTERS} characters; got {len(text)}")
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise Invalid("a URL has printable ASCII characters only, without spaces and backslashes")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Invalid(f"not a URL: {error}") from None
    if parts.scheme not in schemes:
        raise Invalid(f"must begin with {' or '.join(f'{each}://' for each in schemes)}")
    if not host:
        raise Invalid("a URL needs a host")
    if "@" in parts.netloc:
        raise Invalid("a URL with a user name or password is not accepted")
    if parts.fragment:
        raise Invalid("a URL with a fragment is not accepted")
    if port == 0:
        raise Invalid("port 0 is not accepted")
    reason = _refused_literal(host, settings)
    if reason is not None:
        raise Invalid(f"the address is {reason}; only public ones are accepted")
    return text


def host_of(url: str) -> str:
    """Return the host of a URL that was checked, in lower case."""
    return urlsplit(url).hostname or ""


def may_reach(address: str, settings: Settings) -> str | None:
    """Return why the settings forbid to send to an address, None if they do not."""
    return refusal(
        address,
        loopback=settings.webhook_allow_insecure,
        allowed=parse_networks(settings.webhook_allow_networks),
    )


def _refused_literal(host: str, settings: Settings) -> str | None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return None  # a name: what it leads to is looked at when something is sent
    return may_reach(host, settings)
