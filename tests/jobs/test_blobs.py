"""One suite for every blob store: files, moto's S3, and Swift's S3, which checks signatures."""

from __future__ import annotations

import hashlib
import io
import random
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from jobs import (
    BlobDenied,
    BlobExists,
    BlobNotFound,
    Blobs,
    BlobsUnavailable,
    FileBlobs,
    Invalid,
    RangeUnsatisfiable,
    load_settings,
)
from jobs.s3_blobs import S3Blobs, attachment, make_client
from tests.jobs.object_servers import (
    S3Server,
    free_ports,
    link_server,
    missing_for_swift,
    moto_server,
    swift_server,
)

BUCKET = "nif-test"
MIB = 1024 * 1024


@dataclass(frozen=True)
class Case:
    """A store under test.

    Attributes:
        kind: its name.
        blobs: the store.
        with_secret: makes the same store with another secret; None if it has no credentials.
        checks_signatures: whether its server refuses what is signed wrongly.
    """

    kind: str
    blobs: Blobs
    with_secret: Callable[[str], Blobs] | None
    checks_signatures: bool


def s3_blobs(server: S3Server, secret: str | None = None, prefix: str = "") -> S3Blobs:
    settings = load_settings(
        blobs="s3",
        s3_bucket=BUCKET,
        s3_endpoint=server.url,
        s3_access_key=server.access_key,
        s3_secret_key=secret or server.secret_key,
        s3_prefix=prefix,
        s3_timeout_seconds=20,
    )
    client = make_client(settings, settings.s3_endpoint)
    return S3Blobs(client, BUCKET, prefix=prefix, part_bytes=5 * MIB)


@pytest.fixture(scope="module", params=["file", "moto", "swift"])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    kind: str = request.param
    folder: Path = tmp_path_factory.mktemp(kind)
    with ExitStack() as stack:
        if kind == "file":
            (port,) = free_ports(1)
            base = f"http://127.0.0.1:{port}/v1/blobs"
            files = FileBlobs(folder, secret=b"x" * 32, base_url=base)
            stack.enter_context(link_server(files, port))
            yield Case(kind, files, None, True)
            return
        if kind == "swift":
            reason = missing_for_swift(folder)
            if reason is not None:
                pytest.skip(reason)
            server = stack.enter_context(swift_server(folder))
        else:
            server = stack.enter_context(moto_server(folder))
        blobs = s3_blobs(server)
        blobs._client.create_bucket(Bucket=BUCKET)
        stack.callback(blobs.close)
        yield Case(kind, blobs, lambda secret: s3_blobs(server, secret), kind == "swift")


@pytest.fixture
def blobs(case: Case) -> Blobs:
    return case.blobs


@pytest.fixture
def place() -> str:
    """Return a prefix that no other test uses."""
    return f"acme/{secrets.token_hex(6)}"


def fetch(
    url: str, *, method: str = "GET", data: bytes | None = None, headers: Mapping[str, str] = {}
) -> tuple[int, bytes, Mapping[str, str]]:
    """Make a request as a client without credentials does; return status, body and headers."""
    request = urllib.request.Request(url, data=data, method=method, headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.read(), reply.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, 1000, 3 * MIB + 7])
def test_what_is_put_is_what_is_got(blobs: Blobs, place: str, size: int) -> None:
    data = noise(size)
    before = datetime.now(UTC) - timedelta(seconds=2)
    info = blobs.put(f"{place}/a.png", data, media_type="image/png")
    assert blobs.get(f"{place}/a.png") == data
    assert info == blobs.head(f"{place}/a.png")
    assert (info.key, info.size, info.media_type) == (f"{place}/a.png", size, "image/png")
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    assert before <= info.modified <= datetime.now(UTC) + timedelta(seconds=2)
    assert blobs.exists(f"{place}/a.png")


def test_data_may_be_a_file_or_pieces(blobs: Blobs, place: str) -> None:
    data = noise(200_000)
    pieces = (data[i : i + 777] for i in range(0, len(data), 777))
    assert blobs.put(f"{place}/file", io.BytesIO(data)).size == len(data)
    assert blobs.put(f"{place}/pieces", pieces).size == len(data)
    assert blobs.get(f"{place}/file") == blobs.get(f"{place}/pieces") == data


def test_large_blobs_go_in_parts(blobs: Blobs, place: str) -> None:
    data = noise(12 * MIB + 345)
    info = blobs.put(f"{place}/large", io.BytesIO(data), media_type="image/tiff")
    assert info.size == len(data)
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    assert info.media_type == "image/tiff"
    if isinstance(blobs, S3Blobs):
        assert info.etag.endswith("-3")  # S3's mark of three parts
    assert blobs.get(f"{place}/large") == data
    middle = blobs.get(f"{place}/large", start=5 * MIB - 10, end=5 * MIB + 10)
    assert middle == data[5 * MIB - 10 : 5 * MIB + 10]
    copied = blobs.copy(f"{place}/large", f"{place}/copy")
    assert copied.sha256 == info.sha256
    assert blobs.get(f"{place}/copy", start=12 * MIB) == data[12 * MIB :]


def test_keys_are_written_once(blobs: Blobs, place: str) -> None:
    blobs.put(f"{place}/a", b"first")
    with pytest.raises(BlobExists):
        blobs.put(f"{place}/a", b"second")
    with pytest.raises(BlobExists):
        blobs.put(f"{place}/a", noise(6 * MIB))
    blobs.put(f"{place}/b", b"other")
    with pytest.raises(BlobExists):
        blobs.copy(f"{place}/b", f"{place}/a")
    assert blobs.get(f"{place}/a") == b"first"
    blobs.delete(f"{place}/a")
    blobs.put(f"{place}/a", b"second")
    assert blobs.get(f"{place}/a") == b"second"


def test_of_concurrent_writers_one_wins_and_is_read(case: Case, place: str) -> None:
    def write(number: int) -> bool:
        try:
            case.blobs.put(f"{place}/race", b"%d" % number * 1000)
            return True
        except BlobExists:
            return False

    with ThreadPoolExecutor(8) as pool:
        won = [number for number, ok in enumerate(pool.map(write, range(8))) if ok]
    if case.kind == "swift":
        assert won  # Swift may let several succeed; keys are never used as locks
    else:
        assert len(won) == 1
    assert case.blobs.get(f"{place}/race") in [b"%d" % number * 1000 for number in won]


def test_data_that_breaks_off_leaves_nothing(blobs: Blobs, place: str) -> None:
    def broken() -> Iterator[bytes]:
        yield b"beginning"
        raise RuntimeError("the client went away")

    with pytest.raises(RuntimeError, match="went away"):
        blobs.put(f"{place}/a", broken())
    assert not blobs.exists(f"{place}/a")
    assert blobs.list(f"{place}/").items == ()


@pytest.mark.parametrize(
    ("start", "end"), [(0, 10), (5, 6), (90, None), (99, 100), (0, None), (50, 1000), (7, 7)]
)
def test_ranges(blobs: Blobs, place: str, start: int, end: int | None) -> None:
    data = noise(100)
    blobs.put(f"{place}/a", data)
    assert blobs.get(f"{place}/a", start=start, end=end) == data[start:end]
    pieces = list(blobs.stream(f"{place}/a", start=start, end=end, chunk=3))
    assert b"".join(pieces) == data[start:end]
    assert all(len(piece) <= 3 for piece in pieces)


def test_ranges_that_are_not_there(blobs: Blobs, place: str) -> None:
    blobs.put(f"{place}/a", b"x" * 100)
    with pytest.raises(RangeUnsatisfiable) as caught:
        blobs.get(f"{place}/a", start=100)
    assert caught.value.size == 100
    for start, end in ((-1, None), (5, 4)):
        with pytest.raises(Invalid):
            blobs.get(f"{place}/a", start=start, end=end)
    blobs.put(f"{place}/empty", b"")
    assert blobs.get(f"{place}/empty", start=0, end=5) == b""


def test_what_is_not_there(blobs: Blobs, place: str) -> None:
    for look in (blobs.get, blobs.head, blobs.stream):
        with pytest.raises(BlobNotFound):
            look(f"{place}/nothing")
    assert not blobs.exists(f"{place}/nothing")
    with pytest.raises(BlobNotFound):
        blobs.copy(f"{place}/nothing", f"{place}/b")
    blobs.delete(f"{place}/nothing")
    assert blobs.list(f"{place}/").items == ()
    assert blobs.delete_prefix(f"{place}/") == 0


def test_copies_stand_on_their_own(blobs: Blobs, place: str) -> None:
    blobs.put(f"{place}/a", b"content", media_type="image/png")
    info = blobs.copy(f"{place}/a", f"{place}/sub/b")
    assert (info.size, info.media_type) == (7, "image/png")
    assert info.sha256 == hashlib.sha256(b"content").hexdigest()
    blobs.delete(f"{place}/a")
    assert blobs.get(f"{place}/sub/b") == b"content"


def test_lists_are_in_order_and_in_pages(blobs: Blobs, place: str) -> None:
    names = ["a", "a/b", "a-b", "a/b/c", "a0", "b/1", "b/10", "b/2", "c.txt", "z/z/z/z"]
    for name in names:
        blobs.put(f"{place}/{name}", name.encode())
    wanted = sorted(f"{place}/{name}" for name in names)
    page = blobs.list(f"{place}/")
    assert [info.key for info in page.items] == wanted
    assert page.next is None
    assert [info.size for info in page.items] == [len(k) - len(place) - 1 for k in wanted]
    for limit in (1, 3, 9, 10):
        found: list[str] = []
        after = None
        for _ in range(20):
            page = blobs.list(f"{place}/", limit=limit, after=after)
            assert len(page.items) <= limit
            found += [info.key for info in page.items]
            after = page.next
            if after is None:
                break
        assert found == wanted
    assert [info.key for info in blobs.list(f"{place}/b/1").items] == wanted[5:7]
    assert [info.key for info in blobs.list(f"{place}/a/").items] == [
        f"{place}/a/b", f"{place}/a/b/c"
    ]  # fmt: skip
    for limit in (0, 1001):
        with pytest.raises(Invalid):
            blobs.list(place, limit=limit)


def test_deleting_a_prefix(blobs: Blobs, place: str) -> None:
    for number in range(7):
        blobs.put(f"{place}/x/{number}", b"")
    blobs.put(f"{place}/y", b"")
    assert blobs.delete_prefix(f"{place}/x/") == 7
    assert [info.key for info in blobs.list(f"{place}/").items] == [f"{place}/y"]


@pytest.mark.parametrize(
    "key",
    [
        "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "a b", "a\n", "a\\b", "é", "a%2fb",
        "a/b@", "a" * 129, "/".join(["a"] * 300), "a\0",
    ],
)  # fmt: skip
def test_keys_that_are_refused(blobs: Blobs, key: str) -> None:
    for use in (blobs.get, blobs.head, blobs.exists, blobs.delete):
        with pytest.raises(Invalid):
            use(key)
    with pytest.raises(Invalid):
        blobs.put(key, b"")
    with pytest.raises(Invalid):
        blobs.presign_get(key, ttl_seconds=10)


def test_media_types_that_are_refused(blobs: Blobs, place: str) -> None:
    for text in ("", "png", "image/png\r\nX-Evil: 1", "image/png; a=b", "a/b/c"):
        with pytest.raises(Invalid):
            blobs.put(f"{place}/a", b"", media_type=text)


def test_a_link_downloads(blobs: Blobs, place: str) -> None:
    data = noise(5000)
    blobs.put(f"{place}/a", data, media_type="image/png")
    status, body, headers = fetch(blobs.presign_get(f"{place}/a", ttl_seconds=60))
    assert (status, body) == (200, data)
    assert headers["Content-Type"] == "image/png"
    url = blobs.presign_get(
        f"{place}/a", ttl_seconds=60, filename="holiday.nif", media_type="application/vnd.nif"
    )
    status, body, headers = fetch(url)
    assert (status, body) == (200, data)
    assert headers["Content-Type"] == "application/vnd.nif"
    assert headers["Content-Disposition"].startswith('attachment; filename="holiday.nif"')
    assert fetch(blobs.presign_get(f"{place}/nothing", ttl_seconds=60))[0] == 404


def test_a_link_uploads(blobs: Blobs, place: str) -> None:
    data = noise(5000)
    put = blobs.presign_put(f"{place}/up", ttl_seconds=60, size=5000, media_type="image/png")
    assert put.method == "PUT"
    left = put.expires_at - datetime.now(UTC)
    assert timedelta(seconds=50) < left <= timedelta(seconds=60)
    status, _, _ = fetch(put.url, method=put.method, data=data, headers=put.headers)
    assert status == 200
    assert blobs.get(f"{place}/up") == data
    assert blobs.head(f"{place}/up").media_type == "image/png"


def test_links_that_were_altered_are_refused(case: Case, place: str) -> None:
    if not case.checks_signatures:
        pytest.skip(f"{case.kind}'s server checks no signatures")
    blobs = case.blobs
    blobs.put(f"{place}/mine", b"mine")
    blobs.put(f"{place}/other", b"other")
    url = blobs.presign_get(f"{place}/mine", ttl_seconds=60)
    assert fetch(url)[0] == 200
    altered = [url[:-6] + ("aaaaaa" if not url.endswith("aaaaaa") else "bbbbbb")]
    if case.kind == "file":
        other = blobs.presign_get(f"{place}/other", ttl_seconds=60)
        # The body of one link with the signature of another; no signature; no body.
        altered += [other.rpartition(".")[0] + "." + url.rpartition(".")[2]]
        altered += [url.rpartition(".")[0], url.rpartition(".")[0] + ".", url.rpartition("/")[0]]
    else:
        parts = urlsplit(url)
        altered += [url.replace(f"{place}/mine", f"{place}/other")]
        altered += [url.replace("X-Amz-Expires=60", "X-Amz-Expires=600")]
        altered += [urlunsplit(parts._replace(query=""))]
    for each in altered:
        status, body, _ = fetch(each)
        assert status in (400, 401, 403), each
        assert body not in (b"mine", b"other")
    # A link to read is none to write.
    assert fetch(url, method="PUT", data=b"evil")[0] == 403
    assert blobs.get(f"{place}/mine") == b"mine"


def test_an_upload_of_another_length_is_refused(case: Case, place: str) -> None:
    if not case.checks_signatures:
        pytest.skip(f"{case.kind}'s server checks no signatures")
    put = case.blobs.presign_put(f"{place}/up", ttl_seconds=60, size=10, media_type="image/png")
    headers = {name: value for name, value in put.headers.items() if name != "Content-Length"}
    assert fetch(put.url, method="PUT", data=b"x" * 11, headers=headers)[0] == 403
    assert not case.blobs.exists(f"{place}/up")


def test_links_expire(case: Case, place: str) -> None:
    if not case.checks_signatures:
        pytest.skip(f"{case.kind}'s server checks no signatures")
    case.blobs.put(f"{place}/a", b"content")
    get = case.blobs.presign_get(f"{place}/a", ttl_seconds=1)
    put = case.blobs.presign_put(f"{place}/b", ttl_seconds=1, size=1, media_type="image/png")
    time.sleep(2.1)
    assert fetch(get)[0] == 403
    assert fetch(put.url, method="PUT", data=b"x", headers=put.headers)[0] == 403
    assert not case.blobs.exists(f"{place}/b")


def test_a_link_is_good_for_some_time(blobs: Blobs, place: str) -> None:
    for ttl in (0, -1):
        with pytest.raises(Invalid):
            blobs.presign_get(f"{place}/a", ttl_seconds=ttl)
        with pytest.raises(Invalid):
            blobs.presign_put(f"{place}/a", ttl_seconds=ttl, size=1, media_type="a/b")


def test_a_wrong_secret_is_refused(case: Case, place: str) -> None:
    if case.with_secret is None or not case.checks_signatures:
        pytest.skip(f"{case.kind} checks no credentials")
    case.blobs.put(f"{place}/a", b"content")
    stranger = case.with_secret("wrong")
    for use in (stranger.get, stranger.stream, stranger.delete):
        with pytest.raises(BlobDenied):
            use(f"{place}/a")
    with pytest.raises(BlobDenied):
        stranger.put(f"{place}/b", b"")
    with pytest.raises(BlobDenied):
        stranger.list(place)
    with pytest.raises(BlobsUnavailable):
        stranger.check()
    assert fetch(stranger.presign_get(f"{place}/a", ttl_seconds=60))[0] == 403
    stranger.close()
    assert case.blobs.get(f"{place}/a") == b"content"


def test_a_store_that_works_is_in_order(blobs: Blobs) -> None:
    blobs.check()


# What only one of them has


def test_s3_keys_stay_below_the_prefix(case: Case, place: str) -> None:
    if not isinstance(case.blobs, S3Blobs):
        pytest.skip("files have a folder of their own")
    inner = S3Blobs(case.blobs._client, BUCKET, prefix=f"{place}/deep/")
    inner.put("acme/a", b"1")
    inner.put("acme/b", b"2")
    assert [info.key for info in inner.list("acme/").items] == ["acme/a", "acme/b"]
    assert [info.key for info in inner.list("", after="acme/a").items] == ["acme/b"]
    assert case.blobs.get(f"{place}/deep/acme/a") == b"1"
    assert fetch(inner.presign_get("acme/a", ttl_seconds=60))[1] == b"1"


def test_s3_that_is_away_is_unavailable() -> None:
    (port,) = free_ports(1)
    away = s3_blobs(S3Server(f"http://127.0.0.1:{port}", "a", "b"))
    for use in (away.get, away.head, away.delete):
        with pytest.raises(BlobsUnavailable):
            use("acme/a")
    with pytest.raises(BlobsUnavailable):
        away.put("acme/a", b"")
    with pytest.raises(BlobsUnavailable):
        away.check()
    away.close()


def test_a_bucket_that_is_not_there_is_unavailable(case: Case) -> None:
    if not isinstance(case.blobs, S3Blobs):
        pytest.skip("files have no bucket")
    nowhere = S3Blobs(case.blobs._client, "no-such-bucket")
    with pytest.raises(BlobsUnavailable):
        nowhere.check()
    with pytest.raises(BlobsUnavailable):
        nowhere.put("acme/a", b"")


def test_file_names_are_safe_in_headers() -> None:
    assert attachment("a.nif") == "attachment; filename=\"a.nif\"; filename*=UTF-8''a.nif"
    evil = attachment('a"\r\nSet-Cookie: x=ü')
    assert "\r" not in evil
    assert "\n" not in evil
    assert evil.count('"') == 2
    assert evil.isascii()


@pytest.fixture
def files(tmp_path: Path) -> FileBlobs:
    return FileBlobs(tmp_path, secret=b"s" * 16, base_url="http://nif.test/v1/blobs")


def test_files_survive_a_restart_and_show_nothing_half_written(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path, secret=b"s" * 16, base_url="http://nif.test")
    blobs.put("acme/a", b"content")
    (tmp_path / "tmp" / "1-dead").write_bytes(b"half")
    again = FileBlobs(tmp_path, secret=b"s" * 16, base_url="http://nif.test")
    assert [info.key for info in again.list("").items] == ["acme/a"]
    assert again.get("acme/a") == b"content"


def test_leftovers_of_dead_writers_are_swept(tmp_path: Path) -> None:
    import os

    FileBlobs(tmp_path, secret=b"s" * 16, base_url="http://nif.test")
    old, new = tmp_path / "tmp" / "1-old", tmp_path / "tmp" / "1-new"
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (1, 1))
    FileBlobs(tmp_path, secret=b"s" * 16, base_url="http://nif.test")
    assert not old.exists()
    assert new.exists()


def test_empty_folders_go(files: FileBlobs, tmp_path: Path) -> None:
    files.put("acme/x/y/z", b"")
    files.delete("acme/x/y/z")
    assert list((tmp_path / "objects").iterdir()) == []


def test_writers_and_deleters_of_one_folder_do_not_fail(files: FileBlobs) -> None:
    def work(number: int) -> None:
        for turn in range(30):
            files.put(f"acme/x/{number}-{turn}", b"content")
            files.delete(f"acme/x/{number}-{turn}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert files.list("").items == ()


def test_a_damaged_file_is_named(files: FileBlobs, tmp_path: Path) -> None:
    files.put("acme/a", b"content")
    path = tmp_path / "objects" / "acme" / "a@"
    whole = path.read_bytes()
    assert whole.startswith(b"content")
    for damage in (b"", whole[:-1], whole[:-12] + b"\xff\xff\xff\xff" + whole[-8:]):
        path.write_bytes(damage)
        with pytest.raises(Exception, match="acme/a"):
            files.get("acme/a")


def test_a_disk_that_fails_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BlobsUnavailable):
        FileBlobs(tmp_path / "file", secret=b"s" * 16, base_url="http://nif.test")
    blobs = FileBlobs(tmp_path / "root", secret=b"s" * 16, base_url="http://nif.test")
    (tmp_path / "root" / "tmp").rmdir()
    with pytest.raises(BlobsUnavailable):
        blobs.check()
    with pytest.raises(BlobsUnavailable):
        blobs.put("acme/a", b"")


def test_a_kept_secret_is_private_and_stays(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, public_url="https://nif.test/")
    first, second = FileBlobs.from_settings(settings), FileBlobs.from_settings(settings)
    url = first.presign_get("acme/a", ttl_seconds=60)
    assert url.startswith("https://nif.test/v1/blobs/")
    assert second.verify(url.rpartition("/")[2], "GET").key == "acme/a"
    path = tmp_path / "blobs" / "url-secret"
    assert path.stat().st_mode & 0o077 == 0
    assert len(path.read_bytes()) == 64


def test_short_secrets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="16 bytes"):
        FileBlobs(tmp_path, secret=b"short", base_url="http://nif.test")
