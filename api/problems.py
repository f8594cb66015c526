"""Everything that can go wrong in a request, as RFC 9457 problem details with stable codes.

:data:`CATALOGUE` is the only list of codes. ``docs/api.md`` shows it, the OpenAPI document is made
from it, and a test compares the two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import jobs
from nifcore import errors as codec

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Kind:
    """One kind of problem.

    Attributes:
        code: stable name, for programs.
        status: HTTP status.
        title: what it is called, the same every time.
        meaning: what it means and what to do about it.
    """

    code: str
    status: int
    title: str
    meaning: str


_KINDS = (
    Kind(
        "malformed_request",
        400,
        "Malformed request",
        "The body is not the JSON or the form that it claims to be, or ended too early.",
    ),
    Kind(
        "unauthenticated",
        401,
        "Not authenticated",
        "The key is missing, unknown, expired or revoked. Send `Authorization: Bearer nif_...`.",
    ),
    Kind(
        "forbidden", 403, "Not allowed", "The key is good, but has not the scope that this needs."
    ),
    Kind(
        "url_refused",
        403,
        "Link refused",
        "A presigned link is expired, altered, or used with another method.",
    ),
    Kind("not_found", 404, "Not found", "There is nothing at this address."),
    Kind("job_not_found", 404, "No such job", "No job of yours has this id."),
    Kind(
        "upload_not_found",
        404,
        "No such upload",
        "No upload of yours has this id, or it has expired: make another.",
    ),
    Kind("key_not_found", 404, "No such key", "There is no API key with this id."),
    Kind("worker_not_found", 404, "No such worker", "No worker with this id was heard of lately."),
    Kind("queue_not_found", 404, "No such queue", "There is no queue of this name."),
    Kind("webhook_not_found", 404, "No such webhook", "No webhook endpoint of yours has this id."),
    Kind(
        "delivery_not_found",
        404,
        "No such delivery",
        "No webhook delivery of yours has this id, or it is no longer kept.",
    ),
    Kind(
        "method_not_allowed",
        405,
        "Method not allowed",
        "The address exists, but not for this method; `Allow` lists those that do.",
    ),
    Kind(
        "upload_too_slow",
        408,
        "Upload too slow",
        "The body paused for too long or came too slowly; nothing of it was kept.",
    ),
    Kind(
        "wrong_state",
        409,
        "Not in this state",
        "The job's state does not allow this; `state` tells which it is in.",
    ),
    Kind(
        "no_result",
        409,
        "No result",
        "The job has not succeeded, or not yet; `state` tells.",
    ),
    Kind("id_taken", 409, "Id in use", "The chosen id already names something else."),
    Kind(
        "idempotency_in_flight",
        409,
        "Still being answered",
        "Another request with this Idempotency-Key is being worked on; ask again later.",
    ),
    Kind(
        "upload_incomplete",
        409,
        "Nothing uploaded",
        "The upload was announced, but its bytes never came.",
    ),
    Kind(
        "upload_used", 409, "Upload used", "The upload was already used, or its bytes already came."
    ),
    Kind(
        "webhook_disabled",
        409,
        "Webhook disabled",
        "Nothing is sent to this endpoint until it is enabled again: send `enabled: true`.",
    ),
    Kind(
        "too_many_webhooks",
        409,
        "Too many webhooks",
        "The tenant has as many endpoints as are allowed; `limit` tells how many.",
    ),
    Kind(
        "body_too_large",
        413,
        "Body too large",
        "The body, a file or a field in it has more bytes than are accepted.",
    ),
    Kind(
        "too_many_files", 413, "Too many files", "More files or fields than one request may have."
    ),
    Kind(
        "unsupported_media_type",
        415,
        "Unsupported media type",
        "The request's `Content-Type` is none that this address accepts.",
    ),
    Kind(
        "unsupported_image",
        415,
        "Unsupported picture",
        "The first bytes are those of no picture format that is accepted; names and types that "
        "were declared do not count.",
    ),
    Kind(
        "range_unsatisfiable",
        416,
        "Range unsatisfiable",
        "The asked range begins after the end; `Content-Range` tells the length.",
    ),
    Kind(
        "invalid_parameter",
        422,
        "Invalid parameter",
        "A parameter, header or field has a value that is not accepted; `errors` lists each.",
    ),
    Kind(
        "unknown_parameter",
        422,
        "Unknown parameter",
        "A parameter or field that does not exist here; `errors` lists each.",
    ),
    Kind(
        "contradictory_parameters",
        422,
        "Contradictory parameters",
        "Parameters that exclude each other: a preset with an effort or a target, or two targets.",
    ),
    Kind(
        "idempotency_mismatch",
        422,
        "Another request with this key",
        "This Idempotency-Key was used before, with another body.",
    ),
    Kind(
        "damaged_image",
        422,
        "Damaged picture",
        "The picture is truncated, or its header makes no sense.",
    ),
    Kind(
        "too_many_pixels",
        422,
        "Picture too large",
        "The header declares more pixels, or a longer side, than are accepted; or so much was "
        "asked for.",
    ),
    Kind(
        "upload_damaged",
        422,
        "Upload damaged",
        "What was uploaded has not the size or SHA-256 that was declared.",
    ),
    Kind("not_nif", 422, "Not a .nif file", "The file does not begin as a .nif file does."),
    Kind(
        "corrupt_nif",
        422,
        "Corrupt .nif file",
        "The file is truncated or altered, or needs a newer decoder.",
    ),
    Kind(
        "rate_limited",
        429,
        "Too many requests",
        "The key's requests of this minute are used up; `Retry-After` says when to go on.",
    ),
    Kind(
        "quota_exceeded",
        429,
        "Quota used up",
        "Jobs or bytes of the day, or active jobs, are used up; `quota` and `limit` tell which.",
    ),
    Kind(
        "too_many_streams",
        429,
        "Too many streams",
        "As many event streams are open as a tenant may have; close one, or ask for JSON.",
    ),
    Kind(
        "headers_too_large",
        431,
        "Headers too large",
        "The request's header lines have more bytes than are accepted.",
    ),
    Kind("internal", 500, "Internal error", "A mistake of the service. Quote `request_id`."),
    Kind(
        "store_unavailable",
        503,
        "Store unavailable",
        "The service's database does not answer. Nothing was accepted; `Retry-After` says when "
        "to try again.",
    ),
    Kind(
        "blobs_unavailable",
        503,
        "Storage unavailable",
        "The storage of pictures does not answer. Nothing was accepted; `Retry-After` says when "
        "to try again.",
    ),
    Kind(
        "queue_full",
        503,
        "Queue full",
        "As many jobs wait as are allowed to; `Retry-After` says when to try again.",
    ),
    Kind(
        "streams_full",
        503,
        "No more streams",
        "The service has as many event streams open as it can, or stops; try again later, or ask "
        "for JSON.",
    ),
    Kind(
        "decoder_busy",
        503,
        "Decoder busy",
        "Too many pictures are being decoded, or this one took too long; try again later.",
    ),
)
CATALOGUE: Mapping[str, Kind] = {kind.code: kind for kind in _KINDS}
"""Every problem by its code."""


class Problem(Exception):
    """Ends a request with a problem of the catalogue.

    Args:
        code: of :data:`CATALOGUE`.
        detail: what went wrong this time, for people.
        headers: to send along.
        members: more members of the problem object, for programs.
    """

    def __init__(
        self, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.kind = CATALOGUE[code]
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members

    def body(self, request_id: str | None = None) -> dict[str, Any]:
        """Return the problem object."""
        found = {
            "type": f"/v1/problems/{self.kind.code}",
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "code": self.kind.code,
        }
        if request_id is not None:
            found["request_id"] = request_id
        return found | self.members


def retry_after(seconds: float) -> dict[str, str]:
    """Return the header that asks to wait so long, in whole seconds and at least one."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def invalid(place: str, name: str, message: str) -> Problem:
    """Return the problem of one parameter that is not accepted."""
    return Problem(
        "invalid_parameter",
        f"{name}: {message}",
        errors=[{"in": place, "name": name, "message": message}],
    )


_NOT_FOUND = {
    "job": "job_not_found",
    "upload": "upload_not_found",
    "key": "key_not_found",
    "worker": "worker_not_found",
    "queue": "queue_not_found",
    "webhook": "webhook_not_found",
    "delivery": "delivery_not_found",
}


def problem_of(error: Exception) -> Problem | None:
    """Return the problem that an error of the rooms below amounts to, None for a mistake of ours.

    The order matters where one class is another's base.
    """
    match error:
        case Problem():
            return error
        case jobs.NotFound():
            code = _NOT_FOUND.get(error.kind, "not_found")
            return Problem(code, f"no {error.kind} {error.id[:80]!r}")
        case jobs.WrongState():
            return Problem("wrong_state", str(error), state=str(error.state))
        case jobs.EndpointDisabled():
            return Problem("webhook_disabled", str(error))
        case jobs.IdTaken():
            return Problem("id_taken", str(error))
        case jobs.IdempotencyInFlight():
            wait = retry_after(error.retry_after_seconds)
            return Problem("idempotency_in_flight", str(error), headers=wait)
        case jobs.IdempotencyMismatch():
            return Problem("idempotency_mismatch", str(error))
        case jobs.QuotaExceeded(name="queue"):
            wait = retry_after(error.retry_after_seconds)
            return Problem(
                "queue_full", f"{error.limit} jobs wait already", headers=wait, limit=error.limit
            )
        case jobs.QuotaExceeded(name="webhooks"):
            return Problem(
                "too_many_webhooks",
                f"{error.limit} endpoints are allowed; delete one first",
                limit=error.limit,
            )
        case jobs.QuotaExceeded():
            return Problem(
                "quota_exceeded",
                str(error),
                headers=retry_after(error.retry_after_seconds),
                quota=error.name,
                limit=error.limit,
            )
        case jobs.Unavailable():
            # The reason names hosts and ports: for the log, not for the client.
            code = "blobs_unavailable" if error.part == "blobs" else "store_unavailable"
            wait = retry_after(error.retry_after_seconds)
            return Problem(code, f"the {error.part} does not answer", headers=wait)
        case jobs.BlobDenied():
            return Problem(
                "blobs_unavailable", "the blobs cannot be reached", headers=retry_after(5)
            )
        case jobs.UrlRefused():
            return Problem("url_refused", f"the link is refused: {error.reason}")
        case jobs.BlobDamaged():
            return Problem("upload_damaged", "the bytes are not those that were declared")
        case jobs.RangeUnsatisfiable():
            return Problem(
                "range_unsatisfiable",
                f"the file has {error.size} bytes",
                headers={"Content-Range": f"bytes */{error.size}"},
            )
        case jobs.Invalid():
            return Problem("invalid_parameter", str(error))
        case codec.NotNif():
            return Problem("not_nif", str(error))
        case codec.BitstreamError():
            return Problem("corrupt_nif", str(error))
        case codec.LimitExceeded():
            return Problem("too_many_pixels", str(error))
        case codec.UsageError():
            return Problem("invalid_parameter", str(error))
    return None


def response(problem: Problem, request: Request) -> JSONResponse:
    """Return the problem as a response, and leave its code for the log and the metrics."""
    request.state.problem = problem.kind.code
    return JSONResponse(
        problem.body(id_of(request)),
        status_code=problem.kind.status,
        media_type=MEDIA_TYPE,
        headers=problem.headers,
    )


def _from_validation(error: RequestValidationError) -> Problem:
    found = []
    unknown = malformed = False
    for each in error.errors():
        place, *path = (str(part) for part in each["loc"])
        kind = each["type"]
        malformed = malformed or kind == "json_invalid"
        unknown = unknown or kind == "extra_forbidden"
        found.append({"in": place, "name": ".".join(path), "message": each["msg"]})
    detail = "; ".join(f"{each['name'] or each['in']}: {each['message']}" for each in found[:5])
    if malformed:
        return Problem("malformed_request", f"the body is not JSON: {detail}")
    code = "unknown_parameter" if unknown and len(found) == 1 else "invalid_parameter"
    return Problem(code, detail, errors=found)


_OF_STATUS = {404: "not_found", 405: "method_not_allowed", 400: "malformed_request"}


def install(app: FastAPI) -> None:
    """Make ``app`` answer every failure with a problem."""

    def from_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = _OF_STATUS.get(error.status_code, "internal")
        detail = CATALOGUE[code].meaning if code != "malformed_request" else str(error.detail)
        headers = dict(error.headers or {})
        if code == "method_not_allowed" and (methods := _methods(request)):
            headers["Allow"] = ", ".join(methods)
        return response(Problem(code, detail, headers=headers), request)

    def from_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return response(_from_validation(error), request)

    def from_error(request: Request, error: Exception) -> JSONResponse:
        problem = problem_of(error)
        if problem is None:
            raise error
        return response(problem, request)

    app.add_exception_handler(HTTPException, from_http)
    app.add_exception_handler(RequestValidationError, from_validation)
    for kind in (Problem, jobs.JobsError, codec.NifError):
        app.add_exception_handler(kind, from_error)


def _methods(request: Request) -> list[str]:
    """Return the methods of an address; the router knows only those of its first route."""
    found: set[str] = set()
    for operations in _operations(request.app, request.url.path):
        found |= {method.upper() for method in operations}
    return sorted(found)


def _operations(app: FastAPI, path: str) -> Iterator[Mapping[str, Any]]:
    for pattern, operations in app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(pattern)), path):
            yield operations


def id_of(request: Request) -> str | None:
    """Return the id that the middleware gave to the request."""
    return getattr(request.state, "request_id", None)


Responses = dict[int | str, dict[str, Any]]
"""What an operation can answer, as FastAPI takes it."""


def documented(*codes: str, also: Responses | None = None) -> Responses:
    """Return the ``responses`` of an operation: ``also``, or one of these problems."""
    responses: Responses = dict(also or {})
    for code in codes:
        kind = CATALOGUE[code]
        entry = responses.setdefault(
            kind.status,
            {
                "description": kind.title,
                "content": {
                    MEDIA_TYPE: {
                        "schema": {"$ref": "#/components/schemas/Problem"},
                        "examples": {},
                    }
                },
            },
        )
        example = Problem(code, kind.meaning).body("req_4f1c0a9d2b7e4c33")
        examples = entry["content"][MEDIA_TYPE]["examples"]
        examples[code] = {"summary": kind.title, "value": example}
        if len(examples) > 1:
            entry["description"] = ", or ".join(each["summary"] for each in examples.values())
        if kind.status in (429, 503):
            entry["headers"] = {
                "Retry-After": {
                    "description": "Seconds to wait before trying again.",
                    "schema": {"type": "integer", "minimum": 1},
                }
            }
    return responses


SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457 problem details; `code` is stable and meant for programs.",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "enum": list(CATALOGUE)},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "in": {"type": "string"},
                    "name": {"type": "string"},
                    "message": {"type": "string"},
                },
            },
        },
        "state": {"type": "string"},
        "quota": {"type": "string"},
        "limit": {"type": "integer"},
    },
}

# What every operation that takes JSON can end with, besides.
JSON_BODY = ("malformed_request", "body_too_large", "upload_too_slow", "unsupported_media_type")

# What every authenticated operation can end with.
COMMON = (
    "unauthenticated",
    "forbidden",
    "rate_limited",
    "headers_too_large",
    "invalid_parameter",
    "unknown_parameter",
    "store_unavailable",
    "internal",
)
