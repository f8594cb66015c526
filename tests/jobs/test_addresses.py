"""Where webhooks may go: every class of address, and URLs."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobs import Invalid, check_webhook_url, load_settings
from jobs.addresses import REFUSED, parse_networks, refusal
from jobs.webhook_urls import host_of, may_reach

PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::200e"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("fd00::1", "private"),
        ("fd00:ec2::254", "private"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("2606:4700::1111%eth0", "link-local"),
        ("100.64.0.1", "shared (CGNAT)"),
        ("100.100.100.200", "shared (CGNAT)"),
        ("192.0.0.192", "protocol assignments"),
        ("168.63.129.16", "cloud platform"),
        ("192.0.2.1", "documentation"),
        ("198.51.100.7", "documentation"),
        ("203.0.113.9", "documentation"),
        ("2001:db8::1", "documentation"),
        ("3fff::1", "documentation"),
        ("198.18.0.1", "benchmarking"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.250", "multicast"),
        ("ff02::1", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("::ffff:127.0.0.1", "IPv4-mapped"),
        ("::ffff:8.8.8.8", "IPv4-mapped"),
        ("::ffff:0:127.0.0.1", "IPv4-translated"),
        ("::127.0.0.1", "IPv4-compatible"),
        ("64:ff9b::127.0.0.1", "NAT64"),
        ("64:ff9b::808:808", "NAT64"),
        ("64:ff9b:1::a00:1", "NAT64"),
        ("2002:7f00:1::", "6to4"),
        ("2002:808:808::1", "6to4"),
        ("192.88.99.1", "6to4 relay"),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "Teredo"),
        ("2001:2::1", "protocol assignments"),
        ("2001:20::1", "protocol assignments"),
        ("fec0::1", "site-local"),
        ("100::1", "discard"),
        ("5f00::1", "segment routing"),
        ("4000::1", "not public"),
        ("1234", "no address"),
        ("localhost", "no address"),
    ],
)
def test_what_is_not_public_is_refused(address: str, reason: str) -> None:
    assert refusal(address) == reason


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_may_be_reached(address: str) -> None:
    assert refusal(address) is None


@given(st.ip_addresses())
@example(ipaddress.ip_address("192.31.196.1"))
def test_nothing_gets_through_that_python_calls_special(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if refusal(str(address)) is None:
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_private
        assert not address.is_reserved


@given(st.ip_addresses(v=4))
def test_no_writing_of_an_inner_address_gets_through(address: ipaddress.IPv4Address) -> None:
    inner = int(address)
    for prefix in ("::", "::ffff:0:0", "::ffff:0:0:0", "64:ff9b::", "64:ff9b:1::"):
        assert refusal(str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | inner)))
    assert refusal(str(ipaddress.IPv6Address((0x2002 << 112) | (inner << 80)))) == "6to4"
    assert refusal(str(ipaddress.IPv6Address((0x20010000 << 96) | (inner ^ 0xFFFFFFFF))))


def test_the_dev_setting_opens_this_machine_and_nothing_else() -> None:
    for address in ("127.0.0.1", "::1"):
        assert refusal(address, loopback=True) is None
    for address in ("10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "0.0.0.0"):
        assert refusal(address, loopback=True)
    opened = {
        what for network, what in REFUSED if refusal(network.split("/")[0], loopback=True) is None
    }
    assert opened == {"loopback"}


def test_networks_can_be_opened() -> None:
    settings = load_settings(webhook_allow_networks="10.1.0.0/16, fd00::/8")
    assert may_reach("10.1.2.3", settings) is None
    assert may_reach("fd12::1", settings) is None
    assert may_reach("10.2.0.1", settings) == "private"
    assert may_reach("127.0.0.1", settings) == "loopback"
    assert parse_networks("") == ()
    with pytest.raises(Invalid, match="NIF_WEBHOOK_ALLOW_NETWORKS"):
        load_settings(webhook_allow_networks="10.1.2.3/16")


@pytest.mark.parametrize(
    "schedule", ["", "x", "5,,6", "-1", "1e9", "604801", ",".join(["1"] * 51), "nan"]
)
def test_a_bad_schedule_is_named(schedule: str) -> None:
    with pytest.raises(Invalid, match="NIF_WEBHOOK_SCHEDULE_SECONDS"):
        load_settings(webhook_schedule_seconds=schedule)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.org/", "https://"),
        ("ftp://example.org/", "https://"),
        ("//example.org/", "https://"),
        ("example.org", "https://"),
        ("https://", "host"),
        ("https:///path", "host"),
        ("https://user@example.org/", "user name"),
        ("https://user:word@example.org/", "user name"),
        ("https://example.org/#part", "fragment"),
        ("https://example.org:0/", "port 0"),
        ("https://example.org:99999/", "not a URL"),
        ("https://example.org:x/", "not a URL"),
        ("https://[::1/", "not a URL"),
        ("https://exa mple.org/", "printable"),
        ("https://example.org\\@127.0.0.1/", "printable"),
        ("https://example.org/\n", "printable"),
        ("https://exämple.org/", "printable"),
        ("https://127.0.0.1/", "loopback"),
        ("https://[::ffff:10.0.0.1]/", "IPv4-mapped"),
        ("https://169.254.169.254/latest", "link-local"),
        ("https://example.org/" + "x" * 2048, "2048"),
    ],
)
def test_urls_that_are_refused(url: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        check_webhook_url(url, load_settings())


def test_urls_that_are_accepted() -> None:
    strict, lenient = load_settings(), load_settings(webhook_allow_insecure=True)
    for url in (
        "https://example.org",
        "https://example.org:8443/a/b?c=d&e=%20f",
        "https://8.8.8.8/",
        "https://xn--exmple-cua.org/",
    ):
        assert check_webhook_url(url, strict) == url
    for url in ("http://127.0.0.1:9000/", "http://[::1]/", "http://example.org/"):
        assert check_webhook_url(url, lenient) == url
    with pytest.raises(Invalid, match="private"):
        check_webhook_url("http://10.0.0.1/", lenient)
    assert host_of("https://Example.ORG:8443/x") == "example.org"
