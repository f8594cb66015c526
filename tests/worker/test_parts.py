"""The worker's parts, each by itself."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import load_settings
from nifcore import errors
from tests.worker.conftest import ROOT, Bed, picture_bytes, wait_for
from tests.worker.tasks import task_in
from worker import failures, messages
from worker.app import broker_priority, broker_url, hard_limit_seconds, make_app
from worker.child import EncodeChild, describe_end
from worker.flags import Flags
from worker.scratch import scratch, sweep
from worker.supervisor import environment_of


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


class TestApp:
    def test_settings_that_keep_jobs_from_being_lost_or_run_twice(self) -> None:
        settings = load_settings(redis_url="redis://localhost/3", job_time_limit_seconds=7200.0)
        conf = make_app(settings).conf
        assert conf.task_acks_late
        assert conf.task_reject_on_worker_lost
        assert conf.worker_prefetch_multiplier == 1
        assert conf.task_ignore_result
        assert conf.accept_content == ["json"]
        assert conf.broker_connection_retry_on_startup
        assert conf.broker_connection_max_retries is None
        assert conf.worker_pool == "prefork"
        for options in (conf.broker_transport_options, conf.result_backend_transport_options):
            assert options["visibility_timeout"] > conf.task_time_limit
        assert 7200 < conf.task_soft_time_limit < conf.task_time_limit
        assert conf.task_time_limit == hard_limit_seconds(settings)

    def test_a_unix_socket_is_written_as_celery_wants_it(self) -> None:
        settings = load_settings(redis_url="unix:///run/redis.sock")
        assert broker_url(settings) == "redis+socket:///run/redis.sock"

    def test_nine_is_first(self) -> None:
        assert [broker_priority(each) for each in (9, 5, 0)] == [0, 4, 9]

    def test_importing_it_loads_neither_torch_nor_numpy(self) -> None:
        done = run_python(
            "import sys, worker.app, worker.tasks, worker.bench, worker.attempt, worker.light\n"
            "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules), 'heavy'"
        )
        assert done.returncode == 0, done.stderr


class TestWakeups:
    def test_waiting_counts_every_priority(self, make_bed: Callable[..., Bed]) -> None:
        bed = make_bed()
        assert bed.wakeups.waiting("encode") == 0
        for priority in (0, 4, 9, 9):
            bed.wakeups.publish("job", priority=priority, queue="encode")
        assert bed.wakeups.waiting("encode") == 4
        assert bed.wakeups.waiting("other") == 0

    def test_without_redis_it_says_so_quickly(self, tmp_path: Path) -> None:
        from worker.wakeups import CeleryWakeups

        settings = load_settings(redis_url=f"unix://{tmp_path}/none.sock")
        wakeups = CeleryWakeups(settings)
        with pytest.raises(wakeups.errors):
            wakeups.publish("job", priority=5, queue="encode")
        assert wakeups.waiting("encode") is None
        wakeups.close()


class TestFailures:
    def test_every_error_of_the_codec_has_a_code(self) -> None:
        def tree(kind: type[errors.NifError]) -> list[type[errors.NifError]]:
            return [kind, *(each for child in kind.__subclasses__() for each in tree(child))]

        for kind in (each for each in tree(errors.NifError) if each.__module__ == errors.__name__):
            assert failures.code_of(kind("x")) != failures.UNEXPECTED

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (errors.NotAnImage("x"), "not_an_image"),
            (errors.UsageError("x"), "bad_parameters"),
            (errors.CorruptBitstream("x"), "codec_error"),
            (MemoryError(), "out_of_memory"),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
            (KeyError("x"), "unexpected"),
        ],
    )
    def test_codes(self, error: Exception, code: str) -> None:
        assert failures.code_of(error) == code

    def test_memory_behind_a_device_error(self) -> None:
        error = errors.DeviceError("not enough memory")
        assert failures.code_of(error) == "device_error"
        error.__cause__ = MemoryError()
        assert failures.code_of(error) == "out_of_memory"

    def test_what_may_pass_is_tried_again(self) -> None:
        passing = {"device_error", "output_error", failures.UNEXPECTED, failures.CRASHED}
        assert not passing & failures.FINAL
        assert {"not_an_image", "impossible_target", "out_of_memory"} <= failures.FINAL


class TestMessages:
    def test_numbers_that_json_has_not_become_null(self) -> None:
        text = messages.line({"a": math.inf, "b": [math.nan, 1.5], "c": {"d": -math.inf}})
        assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": None}}
        assert text.endswith(b"\n")

    def test_a_task_comes_back_as_it_was(self) -> None:
        task = messages.Task("i", "o", "c", {"effort": 1}, "cpu", 10, 20, 1.5, 4, 50, 0, 30)
        assert messages.read_tasks(task.to_line()) == task
        other = messages.Task("j", "p", "d", {"effort": 2}, "cpu", 10, 20, 1.5, 4, 50, 0, 30)
        assert messages.read_tasks(messages.group_line([task, other])) == [task, other]
        assert messages.read_tasks(messages.group_line([task])) == [task]


class TestFlags:
    def test_a_forked_process_sees_them(self) -> None:
        code = (
            "import os\n"
            "from worker.flags import Flags\n"
            "flags = Flags()\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    flags.draining = True\n"
            "    os._exit(0)\n"
            "os.waitpid(pid, 0)\n"
            "assert flags.draining and flags.holding and not flags.stopping and not flags.paused"
        )
        done = run_python(code)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("name", ["stopping", "draining", "paused"])
    def test_each_holds_and_can_be_taken_back(self, name: str) -> None:
        flags = Flags()
        setattr(flags, name, True)
        assert getattr(flags, "holding")  # noqa: B009  a plain look narrows the type for good
        assert [each for each in ("stopping", "draining", "paused") if getattr(flags, each)] == [
            name
        ]
        setattr(flags, name, False)
        assert not flags.holding


class TestScratch:
    def test_it_is_gone_afterwards(self, tmp_path: Path) -> None:
        with scratch(tmp_path / "s", "job") as folder:
            (folder / "file").write_bytes(b"x")
            assert sweep(tmp_path / "s") == 0
            assert (folder / "file").exists()
        assert list((tmp_path / "s").iterdir()) == []

    def test_a_dead_owner_s_folder_is_swept(self, tmp_path: Path) -> None:
        code = (
            "import os, pathlib\n"
            "from worker.scratch import scratch\n"
            f"with scratch(pathlib.Path({str(tmp_path)!r}), 'job') as folder:\n"
            "    (folder / 'file').write_bytes(b'x')\n"
            "    os._exit(0)"
        )
        assert run_python(code).returncode == 0
        assert len(list(tmp_path.iterdir())) == 1
        assert sweep(tmp_path) == 1
        assert list(tmp_path.iterdir()) == []


class TestBounds:
    def test_memory(self) -> None:
        code = (
            "from worker import rlimits\n"
            "rlimits.apply(rlimits.Bounds(memory_bytes=256 << 20))\n"
            "try:\n"
            "    bytearray(512 << 20)\n"
            "except MemoryError:\n"
            "    print('refused')"
        )
        assert run_python(code).stdout == "refused\n"

    def test_file_size_and_core_dumps(self, tmp_path: Path) -> None:
        code = (
            "import resource\n"
            "from worker import rlimits\n"
            "rlimits.apply(rlimits.Bounds(file_bytes=1000))\n"
            "assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)\n"
            f"file = open({str(tmp_path / 'f')!r}, 'wb', buffering=0)\n"
            "try:\n"
            "    while True: file.write(bytes(300))\n"
            "except OSError as error:\n"
            "    print(error.errno)"
        )
        assert run_python(code).stdout == "27\n"
        assert (tmp_path / "f").stat().st_size == 1000


class TestChild:
    def task(self, folder: Path, **changes: object) -> messages.Task:
        return task_in(folder, picture_bytes(), **{"parameters": {"effort": 9}, **changes})

    def listen(self, child: EncodeChild) -> list[dict[str, object]]:
        said: list[dict[str, object]] = []

        def heard_all() -> bool:
            said.extend(child.listen(0.2))
            return child.ended

        wait_for(heard_all)
        return said

    def test_stop_leaves_a_checkpoint(self, tmp_path: Path) -> None:
        child = EncodeChild(threads=1)
        try:
            child.begin(self.task(tmp_path))
            wait_for(lambda: any(m.get("phase") == "fit" for m in child.listen(0.2)))
            child.order(messages.Order.STOP)
            said = self.listen(child)
            assert [m["event"] for m in said][-2:] == ["checkpoint", "stopped"]
            assert child.wait() == 130
            assert (tmp_path / "checkpoint").stat().st_size > 1000
            assert not (tmp_path / "output").exists()
            assert child.device == "cpu"
        finally:
            child.close()

    @pytest.mark.parametrize(
        ("changes", "code", "status"),
        [
            ({"max_pixels": 100}, "limit_exceeded", 5),
            ({"max_file_bytes": 50}, "limit_exceeded", 5),
            ({"device": "cuda:77"}, "device_error", 6),
            ({"parameters": {"effort": 1, "nonsense": 1}}, "unexpected", 1),
        ],
    )
    def test_errors_carry_code_and_status(
        self, tmp_path: Path, changes: dict[str, object], code: str, status: int
    ) -> None:
        child = EncodeChild(threads=1)
        try:
            child.begin(self.task(tmp_path, **changes))
            (said,) = [m for m in self.listen(child) if m["event"] == "error"]
            assert (said["code"], said["exit_code"]) == (code, status)
            assert child.wait() == status
            assert ("Traceback" in child.last_words()) == (code == "unexpected")
        finally:
            child.close()

    def test_it_computes_with_the_kernel_that_the_environment_asks_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NIF_KERNEL", "chunked")
        child = EncodeChild(threads=1)
        try:
            child.begin(self.task(tmp_path, parameters={"effort": 1}))
            last = self.listen(child)[-1]
            assert last["event"] == "done"
            assert isinstance(last["report"], dict)
            assert last["report"]["kernel"] == "chunked"
        finally:
            child.close()

    def test_it_ends_with_the_pipe(self) -> None:
        child = EncodeChild(threads=1)
        child._stdin.close()
        assert self.listen(child) == []
        assert child.wait() == 0
        child.close()

    def test_ends_are_described(self) -> None:
        assert "SIGKILL" in describe_end(-9)
        assert "status 3" in describe_end(3)
        assert "signal 99" in describe_end(-99)


def test_settings_travel_to_children_unchanged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = load_settings(
        data_dir=tmp_path, redis_url="unix:///x", admin_key="nif_" + "k" * 40, workers=3
    )
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings
    assert os.environ["NIF_WORKERS"] == "3"
