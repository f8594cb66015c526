"""One attempt at one job, from the claim to the end.

::

    claim ─► fetch input, newest checkpoint ─► child at work ─► result ─► outcome ─► succeed
                                                 │
            lease lost ─────────────────────────►│ kill, write nothing
            cancel ─────────────────────────────►│ kill, cancelled
            finish ─────────────────────────────►│ the child keeps the best so far: as above
            worker stops ───────────────────────►│ checkpoint, back to the queue without a strike
            its group is too much ──────────────►│ back to the queue without a strike
            picture, parameters ────────────────►│ outcome ─► fail
            crash, device ──────────────────────►│ back to the queue with a strike, after a pause
            storage away ───────────────────────►  back to the queue without a strike, after a pause
"""

from __future__ import annotations

import base64
import hashlib
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from jobs.errors import (
    BlobDenied,
    BlobError,
    BlobNotFound,
    BlobsUnavailable,
    ClaimRefused,
    Invalid,
    StaleLease,
    StoreUnavailable,
)
from jobs.journal import Outcome, folder
from jobs.logs import get_logger
from jobs.previews import MAX_PREVIEW_BYTES, Preview
from jobs.record import BlobRef, Failure, Progress, State
from jobs.service import JobService
from jobs.settings import Settings
from jobs.store import Claim
from nifcore import read_header
from worker import failures, messages
from worker.child import Encoder, describe_end
from worker.flags import Flags
from worker.keeper import LeaseKeeper
from worker.scratch import scratch

log = get_logger(__name__)

LISTEN_SECONDS = 0.2
STORAGE_PAUSE_ROUNDS = 3
"""A job waits so many rounds of the reaper when the storage is away."""

CLAIM_PATIENCE_SECONDS = 30.0
WRITE_PATIENCE_SECONDS = 600.0
"""How long a finished result is offered to a store that does not answer. After that the journal has
it, and the attempt that follows adopts it."""

T = TypeVar("T")


class Lost(Exception):
    """The lease is somebody else's: end, and write nothing more."""


@dataclass(frozen=True)
class End:
    """How the child's work ended.

    Attributes:
        kind: ``done``, ``failed``, ``crashed``, ``cancelled`` or ``stopped``.
        report: what was measured, when done.
        failure: why it failed or crashed.
        reason: why it was stopped.
    """

    kind: str
    report: Mapping[str, Any] | None = None
    failure: Failure | None = None
    reason: str = "the worker stops"


class CheckpointUploader:
    """Carries checkpoints to the journal, so that slow storage does not hold up the attempt.

    Only the newest matters: one that is replaced before its turn is left out. The thread of the
    attempt reads the file; the child replaces it in one step, so that it is always whole.
    """

    def __init__(self, save: Callable[[bytes], None], path: Path) -> None:
        self._save = save
        self._path = path
        self._turn: queue.Queue[bool] = queue.Queue(1)
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """There is a newer checkpoint."""
        if not self._turn.full():
            self._turn.put(True)

    def close(self, *, timeout_seconds: float) -> None:
        """Carry what waits and end, or give up waiting after so long."""
        deadline = time.monotonic() + timeout_seconds
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._turn.put(False, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while self._turn.get():
            try:
                self._save(self._path.read_bytes())
            except (BlobsUnavailable, BlobError, FileNotFoundError) as error:
                # The next one may get through; without any, a later attempt begins anew.
                log.warning("checkpoint not kept", reason=str(error))


def claim_job(
    service: JobService,
    job_id: str,
    worker: str,
    flags: Flags,
    *,
    patience_seconds: float = CLAIM_PATIENCE_SECONDS,
) -> Claim | None:
    """Claim a job, or return None if it is not to be worked on by us now."""
    nonce = secrets.token_hex(8)
    deadline = time.monotonic() + patience_seconds
    while not flags.stopping:
        try:
            return service.store.claim(job_id, worker=worker, nonce=nonce)
        except ClaimRefused as error:
            log.info("claim refused", job=job_id, reason=error.reason)
            return None
        except StoreUnavailable as error:
            if time.monotonic() > deadline:
                log.warning("claim given up, the reaper will wake again", reason=str(error))
                return None
            time.sleep(0.5)
    return None


class Attempt:
    """Works on a claimed job until it is handed in, given back or lost.

    Args:
        service: store, journal and blobs.
        settings: limits and intervals.
        claim: what was claimed.
        flags: what the worker is told.
        child: gives what will encode; called once.
        together: it shares its child with others, and what may be their doing is no fault of it.
    """

    def __init__(
        self,
        service: JobService,
        settings: Settings,
        claim: Claim,
        flags: Flags,
        child: Callable[[], Encoder],
        *,
        together: bool = False,
    ) -> None:
        self._service, self._settings, self._flags = service, settings, flags
        self._together = together
        self._lease, self._record = claim.lease, claim.record
        self._tenant = claim.record.tenant
        self._make_child = child
        self._keeper = LeaseKeeper(service.store, service.previews, claim.lease, settings)

    def run(self) -> None:
        """Do the job. Ends quietly when the lease is lost."""
        log.info("attempt begins", worker=self._lease.worker)
        began = time.monotonic()
        try:
            with self._keeper:
                state = self._run()
        except (Lost, StaleLease) as error:
            log.warning("attempt abandoned", reason=str(error) or "lease lost")
            return
        except StoreUnavailable as error:
            log.error("the store stayed away; the lease lapses", reason=str(error))
            return
        except Exception as error:
            # Whatever it is: the job must not wait for the lease to lapse, nor go on for ever.
            log.exception("attempt broke")
            self._service.store.release(
                self._lease,
                reason=f"{type(error).__name__}: {error}",
                strike=True,
                delay_seconds=self._settings.reaper_seconds,
            )
            raise
        log.info("attempt ended", state=state, seconds=round(time.monotonic() - began, 3))

    def _run(self) -> State:
        root = self._settings.data_dir / "scratch"
        try:
            outcome = self._earlier_outcome()
            if outcome is not None:
                return self._hand_in(outcome)
            with scratch(root, f"{self._lease.job_id}-{self._lease.attempt}") as place:
                return self._work(place)
        except (BlobsUnavailable, BlobDenied) as error:
            log.warning("storage does not answer", reason=str(error))
            pause = STORAGE_PAUSE_ROUNDS * self._settings.reaper_seconds
            return self._give_back(str(error), delay_seconds=pause)

    def _earlier_outcome(self) -> Outcome | None:
        """Return the success that an earlier attempt made durable and could not hand in."""
        if self._lease.attempt == 1:
            return None
        journal = self._service.journal
        outcome = self._from_storage(lambda: journal.finished(self._tenant, self._lease.job_id))
        if outcome is None or outcome.state is not State.SUCCEEDED:
            return None
        log.info("adopting the result of an earlier attempt")
        return outcome

    # ------------------------------------------------------------------ work

    def _work(self, place: Path) -> State:
        try:
            self._fetch_input(place / "input")
        except BlobNotFound as error:
            # Of a storage that lost everything at once, the job is to wait for the return.
            self._service.blobs.check()
            return self._fail(Failure(failures.INPUT_LOST, f"the picture is gone: {error.key}"))
        except _Damaged as error:
            return self._fail(Failure(failures.INPUT_DAMAGED, str(error)))
        journal = self._service.journal
        state = self._from_storage(
            lambda: journal.load_checkpoint(self._tenant, self._lease.job_id)
        )
        if state is not None:
            (place / "checkpoint").write_bytes(state)
            log.info("resuming", checkpoint_bytes=len(state))
        self._check_lease()

        uploader = CheckpointUploader(self._save_checkpoint, place / "checkpoint")
        child = self._make_child()
        try:
            child.begin(self._task(place))
            end = self._watch(child, uploader)
        finally:
            child.close()
            uploader.close(timeout_seconds=self._settings.stop_seconds / 2)
        self._check_lease()

        match end.kind:
            case "done":
                assert end.report is not None
                return self._succeed(place / "output", end.report)
            case "cancelled":
                return self._write(lambda: self._service.store.cancelled(self._lease)).state
            case "stopped":
                return self._give_back(end.reason)
        assert end.failure is not None
        reason = f"{end.failure.code}: {end.failure.message}"
        if self._together and end.failure.code in failures.CROWDED:
            return self._give_back(f"{reason} (beside others)")
        if end.kind == "failed" and end.failure.code in failures.FINAL:
            return self._fail(end.failure)
        log.warning("attempt failed, trying again", reason=reason, detail=end.failure.detail)
        return self._give_back(reason, strike=True, delay_seconds=self._settings.reaper_seconds)

    def _task(self, place: Path) -> messages.Task:
        settings = self._settings
        return messages.Task(
            input=str(place / "input"),
            output=str(place / "output"),
            checkpoint=str(place / "checkpoint"),
            parameters=self._record.spec.parameters.to_dict(),
            device=settings.device,
            max_pixels=settings.max_pixels,
            max_file_bytes=max(settings.max_upload_bytes, self._record.spec.input.size),
            checkpoint_seconds=settings.checkpoint_seconds,
            previews=settings.previews_per_job,
            preview_bytes=MAX_PREVIEW_BYTES,
            memory_bytes=settings.child_memory_bytes,
            output_bytes=settings.child_file_bytes,
        )

    def _fetch_input(self, path: Path) -> None:
        wanted = self._record.spec.input
        digest, size = hashlib.sha256(), 0
        with path.open("wb") as file:
            for part in self._service.blobs.stream(wanted.key):
                digest.update(part)
                size += len(part)
                file.write(part)
        if size != wanted.size or digest.hexdigest() != wanted.sha256:
            raise _Damaged(
                f"the stored picture has {size} bytes and SHA-256 {digest.hexdigest()}; "
                f"accepted were {wanted.size} bytes and {wanted.sha256}"
            )

    def _watch(self, child: Encoder, uploader: CheckpointUploader) -> End:
        """Listen to the child and pass orders on until it ends or has to."""
        time_limit = time.monotonic() + self._settings.job_time_limit_seconds
        stop_limit = float("inf")
        told_to_finish = False
        end: End | None = None
        while end is None and not child.ended:
            for message in child.listen(LISTEN_SECONDS):
                match message["event"]:
                    case "progress":
                        self._keeper.report(_progress(message))
                    case "preview":
                        self._keeper.show(_preview(message))
                    case "checkpoint":
                        uploader.notify()
                    case "done":
                        end = End("done", report=message["report"])
                    case "stopped":
                        end = End("stopped", reason=message.get("reason", End.reason))
                    case "error":
                        end = End("failed", failure=_failure(message, child))
            now = time.monotonic()
            if self._keeper.lost:
                raise Lost("the lease was lost during the work")
            if end is not None:
                break
            if self._keeper.orders.cancel:
                return End("cancelled")
            if now > time_limit:
                limit = self._settings.job_time_limit_seconds
                text = f"the attempt took longer than {limit:g} s"
                return End("failed", failure=Failure(failures.TIME_LIMIT, text))
            if now > stop_limit:
                return End("stopped")
            if self._keeper.orders.finish and not told_to_finish:
                told_to_finish = True
                child.order(messages.Order.FINISH)
            if self._flags.stopping and stop_limit == float("inf"):
                stop_limit = now + self._settings.stop_seconds / 2
                child.order(messages.Order.STOP)
        status = child.wait()
        if end is None or (end.kind == "done" and status != 0):
            failure = Failure(failures.CRASHED, describe_end(status), child.last_words() or None)
            return End("crashed", failure=failure)
        return end

    def _save_checkpoint(self, data: bytes) -> None:
        if not self._keeper.lost:
            self._service.journal.save_checkpoint(self._tenant, self._lease, data)

    # ------------------------------------------------------------------ ends

    def _succeed(self, path: Path, report: Mapping[str, Any]) -> State:
        data = path.read_bytes()
        header = read_header(data)
        spoken = (report["width"], report["height"], report["bytes"])
        if (header.width, header.height, len(data)) != spoken:
            reason = (
                f"the file ({header.width} x {header.height}, {len(data)} bytes) is not {spoken}"
            )
            return self._give_back(reason, strike=True, delay_seconds=self._settings.reaper_seconds)
        result: BlobRef = self._from_storage(
            lambda: self._service.journal.write_result(self._tenant, self._lease, data)
        )
        outcome = Outcome(State.SUCCEEDED, result=result, report=dict(report), failure=None)
        return self._finish(outcome)

    def _fail(self, failure: Failure) -> State:
        outcome = Outcome(State.FAILED, result=None, report=None, failure=failure)
        log.warning("job failed", code=failure.code, message=failure.message)
        return self._finish(outcome)

    def _finish(self, outcome: Outcome) -> State:
        self._from_storage(
            lambda: self._service.journal.write_outcome(self._tenant, self._lease, outcome)
        )
        return self._hand_in(outcome)

    def _hand_in(self, outcome: Outcome) -> State:
        store, lease = self._service.store, self._lease
        if outcome.state is State.SUCCEEDED:
            result, report = outcome.result, outcome.report
            assert result is not None
            record = self._write(lambda: store.succeed(lease, result, report or {}))
            self._remove_checkpoints()
            return record.state
        failure = outcome.failure
        assert failure is not None
        return self._write(lambda: store.fail(lease, failure)).state

    def _remove_checkpoints(self) -> None:
        try:
            self._service.blobs.delete_prefix(
                f"{folder(self._tenant, self._lease.job_id)}checkpoints/"
            )
        except (BlobsUnavailable, BlobError) as error:
            log.warning("checkpoints left behind, they go with the job", reason=str(error))

    def _give_back(self, reason: str, *, strike: bool = False, delay_seconds: float = 0.0) -> State:
        record = self._write(
            lambda: self._service.store.release(
                self._lease, reason=reason, strike=strike, delay_seconds=delay_seconds
            )
        )
        log.info("given back", reason=reason, state=record.state, strikes=record.strikes)
        return record.state

    # ------------------------------------------------------------------ patience

    def _check_lease(self) -> None:
        if self._keeper.lost:
            raise Lost("the lease was lost")

    def _write(self, call: Callable[[], T]) -> T:
        """Make a final write; every one can be repeated after a lost reply."""
        deadline = time.monotonic() + WRITE_PATIENCE_SECONDS
        stopping = False
        pause = 0.1
        while True:
            self._check_lease()
            try:
                return call()
            except StoreUnavailable:
                if self._flags.stopping and not stopping:
                    stopping = True
                    limit = time.monotonic() + self._settings.stop_seconds / 2
                    deadline = min(deadline, limit)
                if time.monotonic() > deadline:
                    raise
                time.sleep(pause)
                pause = min(5.0, pause * 2)

    def _from_storage(self, call: Callable[[], T]) -> T:
        """Make a call to the storage, a few times if it does not answer."""
        for pause in (0.5, 2.0, 5.0):
            self._check_lease()
            try:
                return call()
            except BlobsUnavailable as error:
                log.warning("storage does not answer", reason=str(error))
                if self._flags.stopping:
                    raise
                time.sleep(pause)
        self._check_lease()
        return call()


class _Damaged(Exception):
    """The stored picture is not the accepted one."""


_PROGRESS_FIELDS = frozenset(Progress.__dataclass_fields__)


def _progress(message: Mapping[str, Any]) -> Progress:
    return Progress.from_dict(
        {
            name: value
            for name, value in message.items()
            if name in _PROGRESS_FIELDS and value is not None
        }
    )


def _preview(message: Mapping[str, Any]) -> Preview | None:
    """Return a preview, or None if it is not what it should be: the child has met the picture."""
    try:
        return Preview(
            data=base64.b64decode(message["data"], validate=True),
            width=int(message["width"]),
            height=int(message["height"]),
            iteration=int(message["iteration"]),
            iterations=int(message["iterations"]),
            psnr_db=None if message["psnr_db"] is None else float(message["psnr_db"]),
        )
    except (Invalid, KeyError, TypeError, ValueError, OverflowError) as error:
        log.warning("preview not taken", reason=str(error))
        return None


def _failure(message: Mapping[str, Any], child: Encoder) -> Failure:
    code, text = str(message["code"]), str(message["message"])
    detail = child.last_words() if code == failures.UNEXPECTED else None
    return Failure(code, text, detail or None)


def work_on(
    service: JobService,
    settings: Settings,
    claim: Claim,
    flags: Flags,
    child: Callable[[], Encoder],
    *,
    together: bool = False,
) -> None:
    """Work on a claimed job, its name in every line of the log; see `Attempt`."""
    with structlog.contextvars.bound_contextvars(
        job=claim.record.id, tenant=claim.record.tenant, attempt=claim.lease.attempt
    ):
        Attempt(service, settings, claim, flags, child, together=together).run()
