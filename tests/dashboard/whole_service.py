"""The whole service as its clients see it, and small pictures with something to learn in them."""

from __future__ import annotations

import io
import time
from typing import Any

import httpx2
import numpy as np
from PIL import Image

PATIENCE_SECONDS = 60.0


class Service:
    """The running service, and a client past the dashboard.

    Attributes:
        url: where it is.
        key: an administrator's.
        client: sends that key.
    """

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        self.client = httpx2.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60.0
        )

    def submit(self, data: bytes, **fields: object) -> str:
        files = {"file": ("waves.png", data)}
        sent = {name: str(value) for name, value in fields.items()}
        answer = self.client.post("/v1/jobs", files=files, data=sent)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/v1/jobs/{job_id}").json()
        return found

    def until(self, job_id: str, *states: str, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (job := self.job(job_id))["state"] not in states:
            assert time.monotonic() < deadline, job
            time.sleep(0.1)
        return job

    def make_key(self, *scopes: str) -> str:
        wanted = {"tenant": "admin", "scopes": list(scopes), "name": "for a test"}
        return str(self.client.post("/v1/keys", json=wanted).json()["key"])


def waves(seed: int, width: int = 96, height: int = 64) -> bytes:
    """Return a picture with something to learn in it, another one for each seed."""
    y, x = np.mgrid[0:height, 0:width] / width
    generator = np.random.default_rng(seed)
    channels = []
    for _ in range(3):
        a, b, c = generator.uniform(4, 24, 3)
        channels.append(127 + 80 * np.sin(a * x + b * y) + 40 * np.sin(c * x * y))
    pixels = np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
