"""How tests talk to the service."""

from __future__ import annotations

import httpx2


def submit(client: httpx2.Client, data: bytes, **fields: object) -> httpx2.Response:
    """Send a picture; ``idempotency_key`` goes into its header, everything else into the form."""
    headers = {}
    if (key := fields.pop("idempotency_key", None)) is not None:
        headers["Idempotency-Key"] = str(key)
    return client.post(
        "/v1/jobs",
        files={"file": ("photo.png", data)},
        data={name: str(value) for name, value in fields.items()},
        headers=headers,
    )


def code_of(answer: httpx2.Response) -> tuple[int, str]:
    """Return status and code of a problem, and check that it is a whole one."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["type"].endswith(body["code"])
    return answer.status_code, body["code"]
