"""Finding jobs by a text: id, file name, metadata, batch, or the beginning of the SHA-256.

There is no index of texts. Records are looked through where they lie, newest first, a thousand at
a time, so that nobody else waits long; what one page does not reach, the next one does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from jobs.database import Database
from jobs.errors import Invalid
from jobs.record import JobRecord, State
from jobs.store import MAX_PAGE, JobStore, read_cursor, write_cursor

CHUNK = 1000
"""Jobs looked at in one call: a few milliseconds of the store."""

MOST_LOOKED_AT = 20_000
"""Jobs looked at for one page."""

MAX_TEXT = 200


@dataclass(frozen=True)
class Found:
    """A page of what was found.

    Attributes:
        records: newest first.
        next_cursor: where to look on, None once everything was looked at.
        looked_at: jobs that were looked at for this page.
    """

    records: tuple[JobRecord, ...]
    next_cursor: str | None
    looked_at: int


class JobSearch:
    """Looks for jobs."""

    def __init__(self, database: Database, store: JobStore) -> None:
        self._database = database
        self._store = store

    def find(
        self,
        text: str,
        *,
        tenant: str | None,
        state: State | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Found:
        """Return jobs that have ``text`` somewhere, in any case of ASCII letters.

        Args:
            text: part of the id, the batch, the file name or the metadata, the first digits of the
                picture's SHA-256, or ``name=value`` for an entry of the metadata.
            tenant: whose jobs; None for everybody's.
            state: only in this one.
            limit: most jobs of the page.
            cursor: of the page before.

        Raises:
            Invalid: no text, or more than 200 characters; a bad limit or cursor.
        """
        wanted = text.strip().lower()
        if not 1 <= len(wanted) <= MAX_TEXT:
            raise Invalid(f"a text to look for has 1 to {MAX_TEXT} characters; got {len(wanted)}")
        if not 1 <= limit <= MAX_PAGE:
            raise Invalid(f"limit must be 1 to {MAX_PAGE}; got {limit}")
        parts = ["jobs"] if state is None else ["jobs", state.value]
        index = ":".join(parts if tenant is None else ["tenant", tenant, *parts])
        highest = "+inf" if cursor is None else f"({read_cursor(cursor)}"
        name, _, value = wanted.partition("=") if "=" in wanted else ("", "", "")
        written = json.dumps(wanted)[1:-1]
        hits: list[tuple[str, int]] = []
        looked_at = 0
        while looked_at < MOST_LOOKED_AT:
            seen, last, *flat = self._database.run(
                "search", index, highest, CHUNK, wanted, written, name, value
            )
            looked_at += int(seen)
            hits += [(flat[i], int(flat[i + 1])) for i in range(0, len(flat), 2)]
            if len(hits) > limit:
                break
            if int(seen) < CHUNK:
                return Found(self._records(hits), None, looked_at)
            highest = f"({last}"
        if len(hits) > limit:
            hits = hits[:limit]
            return Found(self._records(hits), write_cursor(hits[-1][1]), looked_at)
        return Found(self._records(hits), write_cursor(int(highest[1:])), looked_at)

    def _records(self, hits: list[tuple[str, int]]) -> tuple[JobRecord, ...]:
        found = self._store.get_many([job_id for job_id, _ in hits])
        return tuple(record for record in found if record is not None)
