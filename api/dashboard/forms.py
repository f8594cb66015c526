"""Forms of the dashboard: small, and only with the session's token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Depends, Request

from api.context import Shared
from api.dashboard.visitor import CSRF_FIELD, Reader, check_csrf
from api.problems import Problem
from api.settings import MAX_FIELD_BYTES
from api.uploads import chunks, media_type

_MOST_FIELDS = 2000


@dataclass(frozen=True)
class Form:
    """The fields of a form, each with all its values."""

    values: Mapping[str, tuple[str, ...]]

    def one(self, name: str, default: str = "") -> str:
        """Return the first value of a field."""
        return self.values.get(name, (default,))[0].strip()

    def many(self, name: str) -> tuple[str, ...]:
        """Return every value of a field."""
        return self.values.get(name, ())

    @property
    def confirmed(self) -> bool:
        """Whether it was asked back already."""
        return self.one("confirmed") == "1"


async def read_form(request: Request, shared: Shared) -> Form:
    """Read a form's fields.

    Raises:
        Problem: another media type, more than 64 KiB, or not UTF-8.
    """
    if media_type(request) != "application/x-www-form-urlencoded":
        raise Problem("unsupported_media_type", "application/x-www-form-urlencoded is accepted")
    body = bytearray()
    async for chunk in chunks(request, shared.settings, MAX_FIELD_BYTES):
        body += chunk
    try:
        found = parse_qs(
            body.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=_MOST_FIELDS,
        )
    except ValueError as error:
        raise Problem("malformed_request", f"the body is no form: {error}") from None
    return Form({name: tuple(values) for name, values in found.items()})


def _own(request: Request, visitor: Reader, form: Annotated[Form, Depends(read_form)]) -> Form:
    # A request made by a script sends the token in a header instead.
    sent = form.one(CSRF_FIELD) if CSRF_FIELD in form.values else None
    check_csrf(request, visitor.session, sent)
    return form


Posted = Annotated[Form, Depends(_own)]
"""The form of a request, from a page that this session was shown."""
