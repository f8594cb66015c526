"""The place where one worker works: its connections, a child in waiting, and one job at a time."""

from __future__ import annotations

import contextlib

from jobs import open_service
from jobs.errors import Unavailable
from jobs.logs import get_logger
from jobs.record import State
from jobs.settings import Settings
from jobs.store import Claim
from worker.attempt import attempt_job
from worker.child import EncodeChild
from worker.flags import Flags
from worker.presence import Presence
from worker.scratch import sweep
from worker.wakeups import CeleryWakeups

log = get_logger(__name__)


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
        self._prepare_child()
        self._presence.start()

    def work(self, job_id: str) -> None:
        """Look at the job of a wake-up and do what is to be done."""
        attempt_job(
            self._service,
            self._settings,
            job_id,
            worker=self._worker,
            flags=self._flags,
            child=self._take_child,
            claimed=self._claimed,
        )
        if self._flags.stopping:
            # Nobody here will take it: wake another worker now rather than by the reaper.
            self._wake_another(job_id)
        else:
            self._prepare_child()

    def close(self) -> None:
        """End the child in waiting and take leave."""
        if self._spare is not None:
            self._spare.close()
        self._presence.stop()
        self._service.close()
        self._wakeups.close()

    def _prepare_child(self) -> None:
        """Start the next child: loading torch takes longer than many a picture."""
        if self._spare is None or not self._spare.alive:
            self._spare = EncodeChild(threads=self._settings.child_threads)
        self._presence.uses(self._spare.device or self._settings.device, self._spare.pid)

    def _take_child(self) -> EncodeChild:
        child, self._spare = self._spare, None
        if child is None or not child.alive:
            if child is not None:
                log.warning("the child in waiting ended", detail=child.last_words())
                child.close()
            child = EncodeChild(threads=self._settings.child_threads)
        self._presence.uses(child.device or self._settings.device, child.pid)
        return child

    def _claimed(self, claim: Claim | None) -> None:
        self._presence.working_on(None if claim is None else claim.lease)

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
