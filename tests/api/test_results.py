"""Downloading results, seeing them as pictures, and decoding files."""

from __future__ import annotations

import base64
import hashlib
import io

import httpx2
import pytest
from PIL import Image

import nifcore
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
