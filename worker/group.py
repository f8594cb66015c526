"""One child for several jobs: to each of their attempts it looks like a child of its own.

::

    attempt (thread) ─► Member ─┐                     ┌─► picture ─┐
    attempt (thread) ─► Member ─┼─► Group ─► child ───┼─► picture ─┼─► fitted together
    attempt (thread) ─► Member ─┘  (one thread)       └─► picture ─┘

Every job keeps its own lease, files, checkpoints, orders and end, because every job has its own
`Attempt`; only the process that encodes is shared. A member that leaves (cancelled, failed, done,
its lease lost) takes nothing from the others. If the child itself ends, all that are still at work
have lost it, and each goes back to the queue with a strike: the next time it is encoded alone.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.logs import get_logger
from jobs.service import JobService
from jobs.settings import Settings
from jobs.store import Claim
from worker.attempt import LISTEN_SECONDS, work_on
from worker.child import EncodeChild
from worker.flags import Flags
from worker.messages import Order, Task

log = get_logger(__name__)

GATHER_SECONDS = 10.0
"""Members whose picture is not there so long after the first one's are left behind."""
DROP_SECONDS = 5.0
"""How long a member that leaves waits for the child to let go of its files."""

_LAST = frozenset({"done", "stopped", "error"})


class Member:
    """One job's end of the shared child; what it cannot have, it is told as a child would."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        # All below is the group's to guard.
        self.task: Task | None = None
        self.place: int | None = None  # in the child's group, once it has begun
        self.early: list[Order] = []
        self.over = False
        self.closed = False

    def hear(self, message: dict[str, Any]) -> None:
        """Take a message of the child."""
        self._heard.put(message)
        self.over = self.over or message["event"] in _LAST

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to hear."""
        return (self.over or self._group.status is not None) and self._heard.empty()

    def begin(self, task: Task) -> None:
        """Be ready; the child begins when all are."""
        self._group.ready(self, task)

    def order(self, order: Order) -> None:
        """Ask something of the child about this job."""
        self._group.order(self, order)

    def listen(self, timeout_seconds: float) -> Iterator[dict[str, Any]]:
        """Yield what the child said of this job, waiting for it at most so long."""
        if self.ended:
            return
        try:
            yield self._heard.get(timeout=timeout_seconds)
            while True:
                yield self._heard.get_nowait()
        except queue.Empty:
            return

    def wait(self) -> int:
        """Return 0 if the child did its part for this job, else its exit status at its end."""
        return 0 if self.over else self._group.wait()

    def last_words(self) -> str:
        """Return the end of what the child wrote to standard error, whosever it is."""
        return self._group.last_words()

    def close(self) -> None:
        """Leave the group, and have the child leave this job."""
        self._group.leave(self)


class Group:
    """Members that share a child, and the thread that talks to it.

    Args:
        child: that has no task yet; closed when the last member has left.
        size: members.
    """

    def __init__(self, child: EncodeChild, size: int) -> None:
        self._child = child
        self._news = threading.Condition()
        self._begun = False
        self._present: list[Member] = []
        self.members = [Member(self) for _ in range(size)]
        self.status: int | None = None
        """Exit status of the child once it has ended and all it said was passed on."""

    def serve(self) -> None:
        """Begin when the members are ready, pass on what the child says until all have left."""
        try:
            self._begin()
            while not self._left() and not self._child.ended:
                for message in self._child.listen(LISTEN_SECONDS):
                    self._pass_on(message)
        finally:
            self._child.kill()
            with self._news:
                self.status = self._child.wait()
                self._news.notify_all()
                self._news.wait_for(self._left)
            self._child.close()

    def _left(self) -> bool:
        return all(each.closed for each in self.members)

    def _begin(self) -> None:
        deadline = None
        with self._news:
            while any(self._awaited(each) for each in self.members):
                now = time.monotonic()
                if deadline is None and any(each.task for each in self.members):
                    deadline = now + GATHER_SECONDS
                if deadline is not None and now >= deadline:
                    break
                self._news.wait(None if deadline is None else deadline - now)
            self._begun = True
            self._present = [each for each in self.members if each.task and not each.closed]
            tasks = [each.task for each in self._present if each.task is not None]
            if not tasks:
                return
            log.info("group begins", together=len(tasks), of=len(self.members))
            self._child.begin_group(tasks)
            for place, member in enumerate(self._present):
                member.place = place
                for order in member.early:
                    self._child.order(order, place)

    @staticmethod
    def _awaited(member: Member) -> bool:
        return member.task is None and not member.over and not member.closed

    def _pass_on(self, message: dict[str, Any]) -> None:
        place = message.get("member")
        if not isinstance(place, int) or not 0 <= place < len(self._present):
            if message["event"] == "error":
                # Of the whole group: its end follows, and is told to each as a crash.
                log.warning("group failed", code=message.get("code"), reason=message.get("message"))
                return
            self._child.kill()  # it is not the child speaking any more
            return
        with self._news:
            self._present[place].hear(message)
            self._news.notify_all()

    # ------------------------------------------------------------------ the members' calls

    def ready(self, member: Member, task: Task) -> None:
        """A member has its picture."""
        with self._news:
            if self._begun:
                member.hear({"event": "stopped", "reason": "its group began without it"})
            elif not member.over:
                member.task = task
            self._news.notify_all()

    def order(self, member: Member, order: Order) -> None:
        """A member asks something of the child."""
        with self._news:
            if member.over or member.closed:
                return
            if member.place is not None:
                self._child.order(order, member.place)
            elif order is Order.STOP:
                member.task = None
                member.hear({"event": "stopped"})
                self._news.notify_all()
            else:
                member.early.append(order)

    def wait(self) -> int:
        """Wait for the end of the child and return its exit status."""
        with self._news:
            self._news.wait_for(lambda: self.status is not None)
            assert self.status is not None
            return self.status

    def last_words(self) -> str:
        """Return the end of what the child wrote to standard error."""
        with self._news:
            return self._child.last_words()

    def leave(self, member: Member) -> None:
        """A member goes; a picture that is still at work is dropped first."""
        with self._news:
            if member.closed:
                return
            if member.place is not None and not member.over and self.status is None:
                self._child.order(Order.DROP, member.place)
                self._news.wait_for(lambda: member.over or self.status is not None, DROP_SECONDS)
            member.closed = True
            self._news.notify_all()


def work_together(
    service: JobService,
    settings: Settings,
    claims: Sequence[Claim],
    flags: Flags,
    child: EncodeChild,
) -> None:
    """Work on claimed jobs with one child; return when all have come to an end.

    To be called from the thread that started the child.
    """
    group = Group(child, len(claims))

    def work(claim: Claim, member: Member) -> None:
        try:
            work_on(service, settings, claim, flags, lambda: member, together=True)
        except Exception as error:
            # The attempt has logged it and given the job back; the others go on.
            log.warning("attempt in a group broke", job=claim.record.id, reason=str(error))
        finally:
            member.close()

    threads = [
        threading.Thread(target=work, args=each, name=f"attempt {each[0].record.id}", daemon=True)
        for each in zip(claims, group.members, strict=True)
    ]
    for thread in threads:
        thread.start()
    group.serve()
    for thread in threads:
        thread.join()
