"""The place where one worker works: its connections, a child in waiting, and the jobs at hand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from jobs import open_service
from jobs.errors import Unavailable
from jobs.logs import get_logger
from jobs.record import State
from jobs.settings import Settings
from jobs.store import Claim
from worker.attempt import claim_job, work_on
from worker.calibrator import Calibrator, cache_folder
from worker.child import EncodeChild
from worker.flags import Flags
from worker.gathering import gather
from worker.group import work_together
from worker.presence import Presence
from worker.scratch import sweep
from worker.wakeups import CeleryWakeups

log = get_logger(__name__)

TOGETHER_ON_A_GPU = 16
"""Jobs that go together on a GPU unless a setting says otherwise."""


class Bench:
    """Set up in the process that Celery runs tasks in, after it forked.

    Args:
        settings: of the service.
        worker: id of this worker.
        queue: what it listens to.
        flags: shared with the process that takes messages.
    """

    def __init__(self, settings: Settings, worker: str, queue: str, flags: Flags) -> None:
        self._settings, self._worker, self._flags = settings, worker, flags
        self._wakeups = CeleryWakeups(settings)
        self._service = open_service(settings, wakeups=self._wakeups)
        sweep(settings.data_dir / "scratch")
        self._presence = Presence(self._service, settings, worker, queue, flags)
        self._spare: EncodeChild | None = None
        self._taken: EncodeChild | None = None
        self._device = settings.device
        """Where children compute: as settings have it, then as the last one at work said."""
        self._prepare_child()
        self._presence.start()
        self._calibrator: Calibrator | None = None
        if settings.calibrate:
            self._calibrator = Calibrator(settings, self._presence.calibrated)
            self._calibrator.start()

    def work(self, job_id: str) -> None:
        """Look at the job of a wake-up and do what is to be done."""
        with self._busy():
            self._work(job_id)

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        """Keep the calibrator from measuring beside a job."""
        if self._calibrator is None:
            yield
            return
        self._calibrator.busy()
        try:
            yield
        finally:
            self._calibrator.idle()

    def _work(self, job_id: str) -> None:
        claims: list[Claim] = []
        claim = claim_job(self._service, job_id, self._worker, self._flags)
        if claim is not None:
            others = gather(self._service, claim, self._together(), self._worker, self._flags)
            claims = [claim, *others]
            self._presence.working_on(claim.lease, len(claims))
        try:
            self._work_on(claims)
        finally:
            self._presence.working_on(None)
            if self._taken is not None:
                self._device = self._taken.device or self._device
        if self._flags.stopping:
            # Nobody here will take them: wake another worker now rather than by the reaper.
            for each in {job_id: None} | {claim.record.id: None for claim in claims}:
                self._wake_another(each)
        else:
            self._prepare_child()

    def _work_on(self, claims: list[Claim]) -> None:
        if len(claims) == 1:
            work_on(self._service, self._settings, claims[0], self._flags, self._take_child)
        elif claims:
            child = self._take_child()
            work_together(self._service, self._settings, claims, self._flags, child)

    def _together(self) -> int:
        """Return how many jobs may go together."""
        if self._settings.worker_gather is not None:
            return self._settings.worker_gather
        # Only the programs for GPUs gain by it.
        batched = os.environ.get("NIF_KERNEL", "auto") in ("", "auto", "triton")
        return TOGETHER_ON_A_GPU if self._device.startswith("cuda") and batched else 1

    def close(self) -> None:
        """End the child in waiting and take leave."""
        if self._calibrator is not None:
            self._calibrator.close()
        if self._spare is not None:
            self._spare.close()
        self._presence.stop()
        self._service.close()
        self._wakeups.close()

    def _prepare_child(self) -> None:
        """Start the next child: loading torch takes longer than many a picture."""
        if self._spare is None or not self._spare.alive:
            self._spare = self._new_child()
        self._presence.uses(self._spare.device or self._settings.device, self._spare.pid)

    def _new_child(self) -> EncodeChild:
        # The cache has what the calibrator found, which makes the child's ETA a good one early.
        return EncodeChild(threads=self._settings.child_threads, cache=cache_folder(self._settings))

    def _take_child(self) -> EncodeChild:
        child, self._spare = self._spare, None
        if child is None or not child.alive:
            if child is not None:
                log.warning("the child in waiting ended", detail=child.last_words())
                child.close()
            child = self._new_child()
        self._taken = child
        self._presence.uses(child.device or self._settings.device, child.pid)
        return child

    def _wake_another(self, job_id: str) -> None:
        # The reaper does the same a little later; the broker's errors are of many classes.
        with contextlib.suppress(Unavailable):
            record = self._service.store.get(job_id)
            if record.state is not State.QUEUED or record.not_before is not None:
                return
            try:
                self._wakeups.publish(job_id, priority=record.priority, queue=record.queue)
            except self._wakeups.errors as error:
                log.warning("no wake-up sent", reason=str(error))
                return
            self._service.store.mark_published(job_id)
