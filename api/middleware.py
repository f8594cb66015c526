"""What surrounds every request: its id, log line, metrics, and headers that are always sent."""

from __future__ import annotations

import re
import secrets
import time
from typing import Any

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import Metrics
from api.problems import Problem, response
from api.settings import MAX_HEADER_BYTES

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

# In these paths a part is a right in itself: whoever reads the log must not get it.
_SECRET = re.compile(r"(/v1/blobs/).+", re.DOTALL)

log = structlog.get_logger("api")


class Surroundings:
    """ASGI middleware, the outermost but for Starlette's own.

    Args:
        app: what it surrounds.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request = Request(scope)
        request_id = _request_id(request)
        state: dict[str, Any] = scope.setdefault("state", {})
        state |= {"request_id": request_id, "log": {}, "rate_headers": {}}
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        status = 0

        async def send_more(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in (_ALWAYS | state["rate_headers"]).items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        self._metrics.in_flight.inc()
        try:
            size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
            if size > MAX_HEADER_BYTES:
                detail = f"{size} bytes; {MAX_HEADER_BYTES} are accepted"
                problem = Problem("headers_too_large", detail, headers={"Connection": "close"})
                await response(problem, request)(scope, receive, send_more)
            else:
                await self._app(scope, receive, send_more)
        except Exception:
            log.exception("request failed", method=scope["method"], path=shown_path(scope["path"]))
            if status:
                raise  # too late for an answer: the connection is cut
            problem = Problem("internal", "a mistake of the service; quote the request's id")
            await response(problem, request)(scope, receive, send_more)
        finally:
            self._metrics.in_flight.dec()
            self._note(scope, state, status, time.perf_counter() - started)

    def _note(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        # The route's pattern, not the path: ids would make a series each.
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, str(status)).inc()
        code = state.get("problem")
        if code is not None:
            self._metrics.problems.labels(code).inc()
        if "stream" not in state:  # it lasts as long as somebody looks
            self._metrics.seconds.labels(route, method).observe(seconds)
        if route in _QUIET and status < 400:
            return
        log.info(
            "request",
            method=scope["method"],
            path=shown_path(scope["path"]),
            status=status,
            seconds=round(seconds, 4),
            client=(scope.get("client") or ("", 0))[0],
            **({} if code is None else {"problem": code}),
            **state["log"],
        )


_METHODS = {"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"}
_QUIET = {"/healthz", "/readyz", "/metrics"}


def shown_path(path: str) -> str:
    """Return a path as logs may have it: presigned links without their tokens.

    By the path, not the route: requests that are refused before they have one are logged too.
    """
    return _SECRET.sub(r"\1{token}", path)


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(8)}"
