"""Event streams against a running service: what is told, when it ends, and who cannot hurt whom."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api.streams import STREAM_EVENTS
from jobs import (
    EVENT_TYPES,
    TRANSITIONS,
    Preview,
    Progress,
    RedisServer,
    Scope,
    StaleLease,
    load_settings,
    open_service,
    with_parent,
)
from tests.api.asking import code_of, submit
from tests.api.listening import STILL_HERE, Block, Listener
from tests.api.running import Running, Wakeups, picture, serving, settings_in
from worker.supervisor import environment_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with little patience, short queues and few streams."""
    settings = settings_in(
        tmp_path_factory.mktemp("small"),
        stream_heartbeat_seconds=0.3,
        stream_queue=20,
        streams=8,
        streams_per_tenant=6,
        events_per_job=5000,
    )
    with RedisServer.find_or_start(settings) as redis, serving(settings, redis) as found:
        yield found


class Desk:
    """One tenant of a service: jobs, and what a worker does with them."""

    def __init__(self, running: Running, tenant: str, stack: ExitStack) -> None:
        self.running, self.tenant, self._stack = running, tenant, stack
        self.key = running.key(tenant)
        self.client = stack.enter_context(running.client(self.key))
        self._seed = sum(tenant.encode()) * 100

    def job(self) -> str:
        self._seed += 1
        answer = submit(self.client, picture(self._seed), deduplicate="false")
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def progress(self, claim: Any, *numbers: int) -> None:
        for number in numbers:
            said = Progress("fit", iteration=number, iterations=1000, psnr_db=20.0, bpp=0.5)
            self.running.service.store.progress(claim.lease, said)

    def listen(self, path: str, **more: Any) -> Listener:
        return self._stack.enter_context(
            Listener(self.running.url, path, more.pop("key", self.key), **more)
        )

    def follow(self, job_id: str, **more: Any) -> Listener:
        return self.listen(f"/v1/jobs/{job_id}/events", **more)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


@pytest.fixture
def desk(running: Running, tenant: str, stack: ExitStack) -> Desk:
    return Desk(running, tenant, stack)


@pytest.fixture
def small_desk(small: Running, tenant: str, stack: ExitStack) -> Desk:
    return Desk(small, tenant, stack)


def types(blocks: list[Block]) -> list[str]:
    return [block.event for block in blocks if block.data is not None]


def iterations(blocks: list[Block]) -> list[int]:
    told = [block for block in blocks if block.event == "job.progress"]
    return [block.values["data"]["iteration"] for block in told]


def eventually(what: Callable[[], Any], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.02)


class TestJob:
    def test_is_followed_to_its_end(self, desk: Desk) -> None:
        job_id = desk.job()
        stream = desk.follow(job_id)
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-content-type-options"] == "nosniff"
        blocks = stream.blocks()
        begin, snapshot = next(blocks), next(blocks)
        assert begin.retry == 2000
        assert begin.data is None
        assert snapshot.event == "job.snapshot"
        assert snapshot.values == desk.client.get(f"/v1/jobs/{job_id}").json()
        desk.running.succeed(job_id)
        rest = list(blocks)
        assert types(rest) == ["job.running", "job.succeeded", "end"]
        assert rest[-1].values == {"reason": "job_ended"}
        assert rest[1].values["data"]["psnr_db"] == 30.0
        kept = desk.running.service.events.read_job(job_id)
        assert [block.id for block in rest if block.id] == [event.id for event in kept[1:]]

    def test_an_id_brings_back_all_that_was_missed_and_only_that(self, desk: Desk) -> None:
        job_id = desk.job()
        claim = desk.running.claim(job_id)
        desk.progress(claim, 1, 2, 3)
        kept = [event.id for event in desk.running.service.events.read_job(job_id)]
        for stream in (
            desk.follow(job_id, last_event_id=kept[2]),
            desk.listen(f"/v1/jobs/{job_id}/events?after={kept[2]}"),
            desk.listen(f"/v1/jobs/{job_id}/events?after=0-0", last_event_id=kept[2]),
        ):
            blocks = stream.blocks()
            first = [next(blocks) for _ in range(3)]
            assert [block.id for block in first] == [kept[2], kept[3], kept[4]]
            desk.progress(claim, 4)
            assert iterations([next(blocks)]) == [4]

    def test_a_long_history_is_replayed_in_order(self, desk: Desk) -> None:
        job_id = desk.job()
        claim = desk.running.claim(job_id)
        desk.progress(claim, *range(1020))  # two pages and more
        stream = desk.listen(f"/v1/jobs/{job_id}/events?after=0-0").blocks()
        seen: list[Block] = []
        while not seen or seen[-1].event != "job.progress" or iterations(seen)[-1] < 1019:
            seen.append(next(stream))
        desk.progress(claim, 1020)
        seen.append(next(stream))
        assert iterations(seen) == list(range(1021))

    def test_an_ended_job_ends_its_streams(self, desk: Desk) -> None:
        job_id = desk.job()
        desk.running.succeed(job_id)
        blocks = list(desk.follow(job_id).blocks())
        assert types(blocks) == ["job.snapshot", "end"]
        last = blocks[0].id
        replayed = list(desk.follow(job_id, last_event_id="0-0").blocks())
        assert types(replayed) == ["job.queued", "job.running", "job.succeeded", "end"]
        assert [block.id for block in replayed if block.id][-1] == last
        # Browsers come back until they are told so.
        assert desk.follow(job_id, last_event_id=last).status == 204

    def test_a_job_that_is_retried_goes_on(self, desk: Desk) -> None:
        job_id = desk.job()
        desk.client.post(f"/v1/jobs/{job_id}/cancel")
        (*_, last) = [event.id for event in desk.running.service.events.read_job(job_id)]
        assert desk.follow(job_id, last_event_id=last).status == 204
        desk.client.post(f"/v1/jobs/{job_id}/retry")
        stream = desk.follow(job_id, last_event_id="0-0").blocks()
        told = types([next(stream) for _ in range(4)])
        assert told == ["job.queued", "job.cancelled", "job.retried"]
        desk.running.succeed(job_id)
        assert types(list(stream)) == ["job.running", "job.succeeded", "end"]

    def test_a_deleted_job_ends_its_streams_and_is_gone(self, desk: Desk) -> None:
        job_id = desk.job()
        stream = desk.follow(job_id)
        assert desk.client.delete(f"/v1/jobs/{job_id}").status_code == 204
        assert types(stream.until("end"))[-2:] == ["job.deleted", "end"]
        again = desk.follow(job_id)
        assert again.status == 404
        assert b"job_not_found" in again.body()

    def test_only_the_wanted_types_are_sent(self, desk: Desk) -> None:
        job_id = desk.job()
        stream = desk.listen(f"/v1/jobs/{job_id}/events?type=job.progress&after=0-0")
        claim = desk.running.claim(job_id)
        desk.progress(claim, 7)
        desk.running.service.store.cancelled(claim.lease)
        assert types(list(stream.blocks())) == ["job.progress", "end"]

    def test_of_others_does_not_exist(self, desk: Desk, running: Running) -> None:
        job_id = desk.job()
        stranger = running.key("stranger")
        for more in ({}, {"last_event_id": "0-0"}):
            stream = desk.follow(job_id, key=stranger, **more)
            assert stream.status == 404
        assert desk.follow(job_id, key="nif_" + "x" * 43).status == 401
        with running.client(stranger) as client:
            path = f"/v1/jobs/{job_id}/events"
            asked = client.get(path, params={"format": "json"})
            assert code_of(asked) == (404, "job_not_found")

    @pytest.mark.parametrize("place", ["nonsense", "1-", "99999999999999999999-0", "1-2-3"])
    def test_an_id_that_is_none_is_refused(self, desk: Desk, place: str) -> None:
        job_id = desk.job()
        path = f"/v1/jobs/{job_id}/events"
        assert code_of(desk.client.get(path, params={"after": place})) == (422, "invalid_parameter")
        answer = desk.client.get(path, headers={"Last-Event-ID": place})
        assert code_of(answer) == (422, "invalid_parameter")
        answer = desk.client.get(path, params={"type": "job.eaten", "format": "json"})
        assert code_of(answer) == (422, "invalid_parameter")


class TestTenant:
    def test_sees_all_its_jobs_and_no_others(self, desk: Desk, stack: ExitStack) -> None:
        other = Desk(desk.running, f"{desk.tenant}-other", stack)
        stream = desk.listen("/v1/events").blocks()
        next(stream)
        theirs, first = other.job(), desk.job()
        desk.running.succeed(theirs)
        second = desk.job()
        desk.running.succeed(first)
        told = [next(stream) for _ in range(4)]
        assert [(block.event, block.values["job"]) for block in told] == [
            ("job.queued", first),
            ("job.queued", second),
            ("job.running", first),
            ("job.succeeded", first),
        ]

    def test_reads_on_and_picks_types(self, desk: Desk) -> None:
        first = desk.job()
        with desk.listen("/v1/events?after=0-0") as stream:
            seen = next(block for block in stream.blocks() if block.event == "job.queued")
            assert seen.values["job"] == first
        desk.running.succeed(first)
        stream = desk.listen("/v1/events?type=job.succeeded", last_event_id=seen.id).blocks()
        told = [next(stream), next(stream)]
        assert types(told) == ["job.succeeded"]
        second = desk.job()
        desk.running.succeed(second)
        assert next(stream).values["job"] == second

    def test_administrators_choose(self, desk: Desk, admin: httpx2.Client) -> None:
        job_id = desk.job()
        asked = {"format": "json", "tenant": desk.tenant}
        page = admin.get("/v1/events", params=asked).json()
        assert [each["job"] for each in page["items"]] == [job_id]
        refused = desk.client.get("/v1/events", params={"format": "json", "tenant": "admin"})
        assert code_of(refused) == (403, "forbidden")


class TestPages:
    def test_give_the_whole_curve(self, desk: Desk) -> None:
        job_id = desk.job()
        claim = desk.running.claim(job_id)
        desk.progress(claim, *range(40))
        path = f"/v1/jobs/{job_id}/events"
        found, after = [], "0-0"
        while True:
            asked = {"format": "json", "type": "job.progress", "limit": 7, "after": after}
            page = desk.client.get(path, params=asked).json()
            found += [each["data"]["iteration"] for each in page["items"]]
            after = page["last_id"]
            assert not page["ended"]
            if not page["more"]:
                break
        assert found == list(range(40))
        wish = {"Accept": "application/json"}
        empty = desk.client.get(path, params={"after": after}, headers=wish)
        assert empty.json() == {"items": [], "last_id": after, "more": False, "ended": False}
        desk.running.service.store.cancelled(claim.lease)
        page = desk.client.get(path, params={"format": "json", "after": after}).json()
        assert [each["type"] for each in page["items"]] == ["job.cancelled"]
        assert page["ended"]


class TestPatience:
    def test_a_quiet_stream_says_that_it_is_alive(self, small_desk: Desk) -> None:
        blocks = small_desk.follow(small_desk.job()).blocks(signs=True)
        said = [next(blocks) for _ in range(4)]
        assert [block.comments for block in said].count([STILL_HERE]) >= 2
        assert types(said) == ["job.snapshot"]

    def test_a_slow_reader_is_dropped_and_misses_nothing(self, small_desk: Desk) -> None:
        desk = small_desk
        job_id = desk.job()
        claim = desk.running.claim(job_id)
        fast, slow = desk.follow(job_id).blocks(), desk.follow(job_id, receive_buffer=4096)
        seen = [next(fast), next(fast)]
        # 10 MB: more than what lies between, in the kernel and the server, can hold.
        padding, count = "x" * 16_000, 640
        for number in range(count):
            said = Progress("fit", iteration=number, iterations=count, message=padding)
            desk.running.service.store.progress(claim.lease, said)
            seen.append(next(fast))
        late = list(slow.blocks())
        assert types(late)[-1] == "dropped"
        assert late[-1].values == {"reason": "too_slow"}
        assert len(iterations(late)) < count
        assert iterations(seen) == list(range(count))
        desk.running.service.store.cancelled(claim.lease)
        assert types(list(fast)) == ["job.cancelled", "end"]
        last = [block.id for block in late if block.id][-1]
        late += list(desk.follow(job_id, last_event_id=last).blocks())
        assert iterations(late) == list(range(count))
        ended = desk.client.get("/metrics").text
        assert 'nif_streams_ended_total{reason="dropped"} 1.0' in ended

    def test_a_reader_that_takes_nothing_is_cut_off(
        self, small_desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk = small_desk
        monkeypatch.setattr("api.streams.STREAM_STALL_SECONDS", 0.2)
        job_id = desk.job()
        claim = desk.running.claim(job_id)
        desk.follow(job_id, receive_buffer=4096)
        for number in range(640):
            said = Progress("fit", iteration=number, message="x" * 16_000)
            desk.running.service.store.progress(claim.lease, said)
        wanted = 'nif_streams_ended_total{reason="stalled"} 1.0'
        eventually(lambda: wanted in desk.client.get("/metrics").text)
        assert "\nnif_streams 0.0" in desk.client.get("/metrics").text

    def test_there_are_only_so_many(self, small_desk: Desk, stack: ExitStack) -> None:
        desk = small_desk
        job_id = desk.job()
        mine = [desk.follow(job_id) for _ in range(6)]
        assert [each.status for each in mine] == [200] * 6
        with desk.follow(job_id) as seventh:
            assert seventh.status == 429
            assert b"too_many_streams" in seventh.body()
            assert int(seventh.headers["retry-after"]) >= 1
        other = Desk(desk.running, f"{desk.tenant}-other", stack)
        assert [other.listen("/v1/events").status for _ in range(2)] == [200] * 2
        with other.listen("/v1/events") as third:
            assert third.status == 503
            assert b"streams_full" in third.body()
        # Whoever has no stream can still ask.
        page = desk.client.get(f"/v1/jobs/{job_id}/events", params={"format": "json"})
        assert [each["type"] for each in page.json()["items"]] == ["job.queued"]
        for each in mine:
            each.close()
        eventually(lambda: _free(desk, job_id))

    def test_a_revoked_key_ends_its_streams(self, small_desk: Desk) -> None:
        desk = small_desk
        job_id = desk.job()
        revoked, plaintext = desk.running.service.keys.create(desk.tenant, [Scope.JOBS_READ])
        theirs = desk.follow(job_id, key=plaintext)
        mine = desk.follow(job_id).blocks()
        desk.running.service.keys.revoke(revoked.id)
        assert theirs.until("end")[-1].values == {"reason": "key_revoked"}
        assert desk.follow(job_id, key=plaintext).status == 401
        next(mine)
        desk.running.succeed(job_id)
        assert types(list(mine))[-1] == "end"


def _free(desk: Desk, job_id: str) -> bool:
    with desk.follow(job_id) as stream:
        return stream.status == 200


class Server:
    """The API as an installation starts it: uvicorn, in a process of its own."""

    def __init__(self, folder: Path, redis: RedisServer, **more: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.settings = settings_in(folder, redis_url=redis.url, public_url=self.url, **more)
        self._log = folder / "api.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                with_parent.command(
                    [
                        *(sys.executable, "-m", "uvicorn", "--factory", "api.app:create_app"),
                        *("--port", str(port), "--log-level", "warning", "--no-access-log"),
                    ]
                ),
                cwd=ROOT,
                env=os.environ | environment_of(self.settings),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self._log.read_text()
            with suppress(httpx2.HTTPError):
                return httpx2.get(f"{self.url}/readyz").status_code == 200
            return False

        eventually(ready)

    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    settings = load_settings(data_dir=tmp_path)
    with RedisServer.find_or_start(settings, kinds=("system", "bundled")) as found:
        yield found


class TestStopping:
    def test_the_server_does_not_wait_for_streams(
        self, tmp_path: Path, redis: RedisServer, stack: ExitStack
    ) -> None:
        server = Server(tmp_path, redis)
        try:
            server.wait()
            running = _beside(server, redis, stack)
            desk = Desk(running, "acme", stack)
            job_id = desk.job()
            streams = [desk.follow(job_id) for _ in range(3)] + [desk.listen("/v1/events")]
            firsts = [each.blocks() for each in streams]
            for each in firsts:
                next(each)
            server.process.send_signal(signal.SIGTERM)
            # No time-out was given to uvicorn: it would wait for ever.
            endings = [list(each) for each in firsts]
            assert [blocks[-1].comments for blocks in endings] == [["the service stops"]] * 4
            assert server.process.wait(timeout=30) == -signal.SIGTERM, server.log()
            assert "Traceback" not in server.log()
        finally:
            server.process.kill()
            server.process.wait()


class TestRedisAway:
    def test_streams_go_on_without_a_gap(
        self, tmp_path: Path, redis: RedisServer, stack: ExitStack
    ) -> None:
        settings = settings_in(tmp_path, redis_timeout_seconds=1.0)
        running = stack.enter_context(serving(settings, redis))
        desk = Desk(running, "acme", stack)
        job_id = desk.job()
        claim = running.claim(job_id)
        stream, all_of_them = desk.follow(job_id).blocks(), desk.listen("/v1/events").blocks()
        next(stream), next(stream), next(all_of_them)
        desk.progress(claim, 1)
        assert iterations([next(stream)]) == [1]
        redis.stop()
        assert desk.follow(job_id).status == 503
        # Nothing of what is only to be watched fails a job.
        shown = Preview(picture(1, 8, 8, "WEBP"), 8, 8, 1, 100, None)
        assert running.service.previews.add(claim.lease, shown) is None
        redis.restart()
        eventually(lambda: _written(desk, claim, 2))
        desk.progress(claim, 3)
        assert iterations([next(stream), next(stream)]) == [2, 3]
        running.service.store.cancelled(claim.lease)
        assert types(list(stream)) == ["job.cancelled", "end"]
        assert types([next(all_of_them)]) == ["job.cancelled"]


def _written(desk: Desk, claim: Any, number: int) -> bool:
    said = Progress("fit", iteration=number, iterations=1000)
    return desk.running.service.store.progress(claim.lease, said) is not None


def _beside(server: Server, redis: RedisServer, stack: ExitStack) -> Running:
    wakeups = Wakeups()
    service = stack.enter_context(open_service(server.settings, wakeups=wakeups))
    return Running(server.url, server.settings, redis, service, wakeups)


class TestPreviews:
    def test_are_announced_and_fetched(self, desk: Desk) -> None:
        job_id = desk.job()
        claim = desk.running.claim(job_id)
        stream = desk.follow(job_id).blocks()
        next(stream), next(stream)
        data = picture(1, 64, 48, "WEBP", quality=60)
        desk.running.service.previews.add(claim.lease, Preview(data, 64, 48, 5, 100, 21.5))
        told = next(stream)
        assert told.event == "job.preview"
        assert told.values["data"] == {
            "number": 1,
            "url": f"/v1/jobs/{job_id}/previews/1",
            "width": 64,
            "height": 48,
            "size": len(data),
            "iteration": 5,
            "iterations": 100,
            "psnr_db": 21.5,
        }
        url = told.values["data"]["url"]
        assert desk.client.get(f"/v1/jobs/{job_id}").json()["links"]["preview"] == url
        answer = desk.client.get(url)
        assert answer.content == data
        assert answer.headers["content-type"] == "image/webp"
        assert "immutable" in answer.headers["cache-control"]
        again = desk.client.get(url, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304

    def test_of_others_or_of_nothing_do_not_exist(self, desk: Desk, running: Running) -> None:
        job_id = desk.job()
        claim = desk.running.claim(job_id)
        data = picture(1, 64, 48, "WEBP")
        desk.running.service.previews.add(claim.lease, Preview(data, 64, 48, 5, 100, None))
        url = f"/v1/jobs/{job_id}/previews/"
        with running.client(running.key("stranger")) as stranger:
            assert code_of(stranger.get(f"{url}1")) == (404, "job_not_found")
        assert code_of(desk.client.get(f"{url}2")) == (404, "not_found")
        assert code_of(desk.client.get(f"{url}0")) == (422, "invalid_parameter")

    def test_only_the_newest_are_kept_and_only_the_holder_adds(self, desk: Desk) -> None:
        job_id = desk.job()
        service = desk.running.service
        claim = desk.running.claim(job_id)
        data = picture(1, 8, 8, "WEBP")
        for number in range(1, 16):
            made = Preview(data, 8, 8, number, 100, None)
            assert service.previews.add(claim.lease, made) == number
        kept = [n for n in range(1, 16) if service.previews.get(job_id, n) is not None]
        assert kept == list(range(4, 16))
        key = service.database.key("job", job_id, "previews")
        assert 0 < service.database.client.pttl(key) <= 3_600_000
        service.store.cancelled(claim.lease)
        with pytest.raises(StaleLease):
            service.previews.add(claim.lease, Preview(data, 8, 8, 1, 100, None))
        service.delete(desk.tenant, job_id)
        assert service.previews.get(job_id, 15) is None


class TestTables:
    PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")

    def rows(self, heading: str) -> list[list[str]]:
        section = self.PAGE.partition(f"{heading}\n")[2].partition("\n## ")[0]
        lines = re.findall(r"^\| `([^`]+)` \|(.*)\|$", section, re.M)
        return [[name, *(cell.strip() for cell in rest.split("|"))] for name, rest in lines]

    def test_every_event_is_on_the_page(self) -> None:
        found = [row for row in self.rows("## Events") if row[0] in EVENT_TYPES]
        assert found == [
            [each.name, each.meaning, each.data, "yes" if each.tenant_too else ""]
            for each in EVENT_TYPES.values()
        ]

    def test_every_event_of_the_streams_themselves_too(self) -> None:
        found = [row for row in self.rows("## Events") if row[0] not in EVENT_TYPES]
        assert found == [[name, meaning] for name, meaning in STREAM_EVENTS.items()]

    def test_the_scripts_emit_these_and_no_others(self) -> None:
        emitted = {each.event for each in TRANSITIONS}
        for script in (ROOT / "jobs" / "lua").glob("*.lua"):
            emitted |= set(re.findall(r"'(job\.[a-z_]+)'", script.read_text(encoding="utf-8")))
        assert emitted == set(EVENT_TYPES)
        ending = {each.event for each in TRANSITIONS if each.target.terminal}
        assert {each.name for each in EVENT_TYPES.values() if each.ends} == ending | {"job.deleted"}
