"""Which addresses a webhook may be sent to: those of the public Internet, and no other.

A receiver's URL comes from a client. Without this rule it could name the metadata service of a
cloud, a database beside us, or our own loopback, and the sender would knock there for it. The
tables follow IANA's registries of special-purpose addresses. Forms of IPv6 that carry an IPv4
address inside (mapped, translated, NAT64, 6to4, Teredo) are refused whole: what the inner address
is, is decided by whoever routes it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

REFUSED: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "unspecified"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared (CGNAT)"),
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "cloud platform"),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "protocol assignments"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "6to4 relay"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmarking"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("::/96", "IPv4-compatible"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("::ffff:0:0:0/96", "IPv4-translated"),
    ("64:ff9b::/96", "NAT64"),
    ("64:ff9b:1::/48", "NAT64"),
    ("100::/64", "discard"),
    ("2001::/32", "Teredo"),
    ("2001::/23", "protocol assignments"),
    ("2001:db8::/32", "documentation"),
    ("2002::/16", "6to4"),
    ("3fff::/20", "documentation"),
    ("5f00::/16", "segment routing"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
)
"""Networks that are refused, and what they are; the first that fits names the reason."""

_REFUSED: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(network), what) for network, what in REFUSED
)
# Of IPv6 only this part is handed out for the public Internet.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_LOOPBACK = frozenset({"loopback"})


def parse_networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a list with commas, such as ``10.1.0.0/16,fd00::/8``.

    Raises:
        ValueError: one is no network; the message names it.
    """
    return tuple(ipaddress.ip_network(each.strip()) for each in text.split(",") if each.strip())


def refusal(address: str, *, loopback: bool = False, allowed: Iterable[Network] = ()) -> str | None:
    """Return why nothing may be sent to an address, None if it may.

    Args:
        address: an IPv4 or IPv6 address in its usual writing.
        loopback: whether this machine itself may be reached, for development.
        allowed: networks that may be reached although they are not public.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return "no address"
    if isinstance(found, ipaddress.IPv6Address) and found.scope_id is not None:
        return "link-local"
    if any(found in network for network in allowed):
        return None
    for network, what in _REFUSED:
        if found in network:
            return None if loopback and what in _LOOPBACK else what
    if isinstance(found, ipaddress.IPv6Address) and found not in _GLOBAL_UNICAST:
        return "not public"
    return None
