"""Downloading results, seeing them as pictures, reading reports, and decoding files."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import logging
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

import nifcore
from api import settings as fixed
from api.app import create_app
from api.decoding import Decoder, View, checked
from api.middleware import shown_path
from api.pictures import rival_sizes
from api.problems import Problem
from nifcore.compare import equal_size
from tests.api.asking import code_of, submit
from tests.api.running import GOLDEN, Running, picture

FILE = GOLDEN.read_bytes()
DIGEST = hashlib.sha256(FILE).hexdigest()


@pytest.fixture
def job(running: Running, client: httpx2.Client) -> str:
    job_id: str = submit(client, picture(1), deduplicate="false").json()["id"]
    running.succeed(job_id, FILE)
    return job_id


def pixels(answer: httpx2.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    image = Image.open(io.BytesIO(answer.content))
    image.load()
    return image


def test_a_result_is_sent_whole_as_an_attachment(client: httpx2.Client, job: str) -> None:
    answer = client.get(f"/v1/jobs/{job}/result")
    assert (answer.status_code, answer.content) == (200, FILE)
    headers = answer.headers
    assert headers["content-disposition"] == 'attachment; filename="photo.nif"'
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-length"] == str(len(FILE))
    assert headers["etag"] == f'"{DIGEST}"'
    digest = base64.b64encode(bytes.fromhex(DIGEST)).decode()
    assert headers["repr-digest"] == f"sha-256=:{digest}:"


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-99", 206, 0, 100),
        ("bytes=10-", 206, 10, len(FILE)),
        ("bytes=-7", 206, len(FILE) - 7, len(FILE)),
        (f"bytes=5-{10**9}", 206, 5, len(FILE)),
        (f"bytes=-{10**9}", 206, 0, len(FILE)),
        ("bytes=0-1,5-6", 200, 0, len(FILE)),
        ("bytes=9-3", 200, 0, len(FILE)),
        ("lines=1-2", 200, 0, len(FILE)),
    ],
)
def test_a_range_is_sent(
    client: httpx2.Client, job: str, asked: str, status: int, start: int, end: int
) -> None:
    answer = client.get(f"/v1/jobs/{job}/result", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, FILE[start:end])
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(FILE)}"


def test_a_range_beyond_the_end_is_refused(client: httpx2.Client, job: str) -> None:
    for asked in (f"bytes={len(FILE)}-", "bytes=-0"):
        answer = client.get(f"/v1/jobs/{job}/result", headers={"Range": asked})
        assert code_of(answer) == (416, "range_unsatisfiable")
        assert answer.headers["content-range"] == f"bytes */{len(FILE)}"


def test_conditions_are_honoured(client: httpx2.Client, job: str) -> None:
    path, tag = f"/v1/jobs/{job}/result", f'"{DIGEST}"'
    for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = client.get(path, headers={"If-None-Match": given})
        assert (answer.status_code, answer.content) == (304, b"")
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    part = {"Range": "bytes=0-3"}
    assert client.get(path, headers={**part, "If-Range": tag}).status_code == 206
    assert client.get(path, headers={**part, "If-Range": '"other"'}).content == FILE


def test_a_result_can_be_had_from_the_storage(running: Running, client: httpx2.Client) -> None:
    large = FILE + bytes(600_000)
    job_id = submit(client, picture(2)).json()["id"]
    running.succeed(job_id, large)
    assert client.get(f"/v1/jobs/{job_id}/result").content == large
    answer = client.get(f"/v1/jobs/{job_id}/result", params={"redirect": "true"})
    assert answer.status_code == 307
    link = answer.headers["location"]
    # The link itself is the right: no key is sent.
    with running.client(None) as stranger:
        followed = stranger.get(link)
        assert followed.content == large
        assert followed.headers["content-disposition"] == 'attachment; filename="photo.nif"'
        assert followed.headers["x-content-type-options"] == "nosniff"
        part = stranger.get(link, headers={"Range": "bytes=300000-599999"})
        assert (part.status_code, part.content) == (206, large[300_000:600_000])
        altered = stranger.get(link[:-2] + ("AA" if link[-2:] != "AA" else "BB"))
        assert code_of(altered) == (403, "url_refused")
        assert code_of(stranger.put(link, content=b"x")) == (403, "url_refused")


class _Lines(logging.Handler):
    """What reaches the log of the service, where its own handler is."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.name, record.getMessage()))


def test_the_tokens_of_links_are_not_in_the_log(
    running: Running, client: httpx2.Client, job: str
) -> None:
    link = client.get(f"/v1/jobs/{job}/result", params={"redirect": "true"}).headers["location"]
    token, lines, root = link.rpartition("/")[2], _Lines(), logging.getLogger()
    level = root.level
    root.addHandler(lines)
    root.setLevel(logging.DEBUG)
    try:
        with running.client(None) as stranger:
            assert stranger.get(link).content == FILE
            assert stranger.delete(link).status_code == 405
            assert stranger.get(f"{link}/more").status_code == 404
            assert stranger.get(link, headers={"X-Large": "x" * 20_000}).status_code == 431
    finally:
        root.setLevel(level)
        root.removeHandler(lines)
    # This process is the client too, whose library says what it asked for.
    said = [text for name, text in lines.said if not name.startswith(("httpx2", "httpcore2"))]
    assert len([each for each in said if "/v1/blobs/{token}" in each]) == 4, said
    assert not [each for each in said if token in each]


def test_every_route_with_a_token_is_shown_without_it() -> None:
    paths = [each for each in create_app().openapi()["paths"] if "{token}" in each]
    assert paths
    for path in paths:
        assert shown_path(path.replace("{token}", "secret")) == path
    assert shown_path("/v1/jobs/job_1") == "/v1/jobs/job_1"


def test_names_of_files_cannot_break_the_header(running: Running, client: httpx2.Client) -> None:
    name = 'Grüße"; filename=x.exe;\n.png'
    answer = client.post(
        "/v1/jobs", files={"file": (name, picture(3))}, data={"deduplicate": "false"}
    )
    job_id = answer.json()["id"]
    running.succeed(job_id, FILE)
    value = client.get(f"/v1/jobs/{job_id}/result").headers["content-disposition"]
    assert value.startswith('attachment; filename="Gr__e')
    assert value.count('"') == 2
    assert "filename*=UTF-8''Gr%C3%BC%C3%9Fe" in value


def test_a_result_is_seen_as_a_picture_and_kept(
    running: Running, client: httpx2.Client, tenant: str, job: str
) -> None:
    path = f"/v1/jobs/{job}/image"
    first = client.get(path)
    assert first.headers["content-type"] == "image/png"
    assert first.headers["content-disposition"] == 'attachment; filename="photo.png"'
    truth = nifcore.decode(FILE, device="cpu")
    assert pixels(first).tobytes() == truth.tobytes()
    kept = running.service.blobs.list(f"{tenant}/jobs/{job}/images/").items
    assert [item.size for item in kept] == [len(first.content)]
    again = client.get(path)
    assert again.content == first.content
    tag = first.headers["etag"]
    assert client.get(path, headers={"If-None-Match": tag}).status_code == 304
    assert client.delete(f"/v1/jobs/{job}").status_code == 204
    assert not running.service.blobs.list(f"{tenant}/jobs/{job}/").items


def test_a_kept_picture_is_not_held_in_memory(
    running: Running, client: httpx2.Client, tenant: str, job: str
) -> None:
    path, blobs = f"/v1/jobs/{job}/image", running.service.blobs
    client.get(path)
    (kept,) = blobs.list(f"{tenant}/jobs/{job}/images/").items
    blobs.delete(kept.key)
    size, piece = 48 * 1024 * 1024, bytes(range(256)) * 4096
    blobs.put(kept.key, (piece for _ in range(0, size, len(piece))), media_type="image/png")
    tracemalloc.start()
    try:
        with client.stream("GET", path) as answer:
            assert answer.headers["content-length"] == str(size)
            received = sum(len(each) for each in answer.iter_raw())
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received == size
    assert most < size / 4


def test_a_large_picture_comes_whole_the_first_time_too(client: httpx2.Client, job: str) -> None:
    asked = {"width": 1900, "height": 1900, "format": "png"}
    first = client.get(f"/v1/jobs/{job}/image", params=asked)
    assert len(first.content) > 256 * 1024  # more than one piece
    assert pixels(first).tobytes() == nifcore.decode(FILE, size=(1900, 1900)).tobytes()
    assert first.headers["content-length"] == str(len(first.content))
    again = client.get(f"/v1/jobs/{job}/image", params=asked)
    assert again.content == first.content
    assert again.headers["etag"] == first.headers["etag"]
    data = {name: str(value) for name, value in asked.items()}
    sent = client.post("/v1/decode", files={"file": ("a.nif", FILE)}, data=data)
    assert sent.content == first.content


def test_only_the_latest_renderings_are_kept(
    running: Running,
    client: httpx2.Client,
    tenant: str,
    job: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.routes.results.KEPT_RENDERINGS", 2)
    for width in range(1, 5):
        image = pixels(client.get(f"/v1/jobs/{job}/image", params={"width": width, "height": 2}))
        assert image.size == (width, 2)
    kept = running.service.blobs.list(f"{tenant}/jobs/{job}/images/").items
    names = {each.key.rpartition("/")[2] for each in kept}
    assert names == {"3x2.png", "4x2.png"}


def test_a_part_at_another_size_in_another_format(client: httpx2.Client, job: str) -> None:
    header = nifcore.read_header(FILE)
    asked: dict[str, str | int] = {
        "width": header.width * 2,
        "region": "4,2,20,10",
        "format": "webp",
    }
    image = pixels(client.get(f"/v1/jobs/{job}/image", params=asked))
    assert (image.format, image.size) == ("WEBP", (20, 10))


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"format": "gif"}, "invalid_parameter"),
        ({"width": 0}, "invalid_parameter"),
        ({"region": "1,2,3"}, "invalid_parameter"),
        ({"region": "0,0,100000,1"}, "invalid_parameter"),
        ({"region": "0,0,0,5"}, "invalid_parameter"),
        ({"width": 65_000, "height": 65_000}, "too_many_pixels"),
        ({"size": 3}, "unknown_parameter"),
    ],
)
def test_a_view_is_checked_before_anything_is_started(
    client: httpx2.Client, job: str, asked: dict[str, str | int], code: str
) -> None:
    answer = client.get(f"/v1/jobs/{job}/image", params=asked)
    assert code_of(answer) == (422, code)


def test_a_file_is_decoded_and_not_kept(running: Running, client: httpx2.Client) -> None:
    before = len(running.service.blobs.list("", limit=1000).items)
    answer = client.post(
        "/v1/decode",
        files={"file": ("a.nif", FILE)},
        data={"format": "jpeg", "width": "32"},
    )
    image = pixels(answer)
    assert (image.format, image.width) == ("JPEG", 32)
    assert answer.headers["content-disposition"] == 'attachment; filename="a.jpeg"'
    assert len(running.service.blobs.list("", limit=1000).items) == before


def test_what_is_no_whole_file_is_not_decoded(client: httpx2.Client) -> None:
    def decode(data: bytes, **fields: str) -> httpx2.Response:
        return client.post("/v1/decode", files={"file": ("a.nif", data)}, data=fields)

    assert code_of(decode(picture(4))) == (422, "not_nif")
    assert code_of(decode(FILE[:12])) == (422, "corrupt_nif")
    flipped = bytearray(FILE)
    flipped[-30] ^= 1
    answer = decode(bytes(flipped))
    assert code_of(answer) == (422, "corrupt_nif")
    assert "/tmp" not in answer.text
    assert code_of(decode(FILE, quality="3")) == (422, "unknown_parameter")
    assert code_of(decode(FILE, format="gif")) == (422, "invalid_parameter")


def test_a_file_that_waits_for_its_turn_is_not_touched(
    running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fixed, "DECODERS", 1)
    view = checked(View(width=4, height=3), FILE, running.settings)
    written: list[Path] = []

    async def two_at_once() -> None:
        decoder = Decoder(running.settings)
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def write(path: Path) -> None:
            written.append(path)
            loop.call_soon_threadsafe(begun.set)
            path.write_bytes(FILE)

        first = asyncio.create_task(decoder.render(write, view))
        await begun.wait()
        monkeypatch.setattr(fixed, "DECODE_WAIT_SECONDS", 0.01)
        with pytest.raises(Problem) as refused:
            await decoder.render(write, view)
        assert refused.value.kind.code == "decoder_busy"
        with await first as found:
            assert Image.open(found).size == (4, 3)

    asyncio.run(two_at_once())
    assert len(written) == 1
    assert not written[0].exists()


def test_a_report_has_rivals_of_this_very_picture_when_asked(
    running: Running, client: httpx2.Client
) -> None:
    data = picture(5, 64, 48)
    job_id = submit(client, data, deduplicate="false").json()["id"]
    path = f"/v1/jobs/{job_id}/report"
    assert code_of(client.get(path, params={"rivals": "true"})) == (409, "no_result")
    record = running.succeed(job_id, FILE)
    plain = client.get(path).json()
    assert (plain["rivals"], plain["no_rivals"]) == (None, "not_asked")
    assert plain["report"] == dict(record.report or {})

    told = client.get(path, params={"rivals": "true"}).json()
    assert (told["report"], told["no_rivals"]) == (plain["report"], None)
    original = np.asarray(Image.open(io.BytesIO(data)))
    expected = {
        (each.codec, each.quality): asdict(each)
        for size in rival_sizes(record)
        for each in equal_size(original, size)
        if np.isfinite(each.psnr_db)
    }
    assert {"JPEG", "WEBP"} <= {codec for codec, _ in expected}
    assert {(each["codec"], each["quality"]): each for each in told["rivals"]} == expected
    within = [each for each in told["rivals"] if each["bytes"] <= len(FILE)]
    assert all(not each["larger"] for each in within)


def test_rivals_are_measured_once_and_need_the_picture(
    running: Running, client: httpx2.Client, job: str
) -> None:
    path, asked = f"/v1/jobs/{job}/report", {"rivals": "true"}
    source = running.service.get(None, job).spec.input.key
    data = running.service.blobs.get(source)
    running.service.blobs.delete(source)
    gone = client.get(path, params=asked).json()
    assert (gone["rivals"], gone["no_rivals"]) == (None, "picture_gone")
    running.service.blobs.put(source, data)
    found = client.get(path, params=asked).json()
    assert found["rivals"]
    running.service.blobs.delete(source)
    assert client.get(path, params=asked).json() == found
