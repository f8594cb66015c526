"""``make screenshots``: every page of the dashboard as a picture, with jobs that really ran.

python -m tests.dashboard.screenshots FOLDER [--keep]

The whole service is started, some photographs are fitted at low effort, one fails, one is
cancelled, one is still at work; then every page is taken in both themes, on a desk and on a phone.
``--keep`` also writes the two pictures that the documents show.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import expect
from skimage import data as photographs

from api.embedded import EmbeddedService
from tests.dashboard.browsing import Tab, browsing, chromium
from tests.dashboard.whole_service import Service
from tests.worker.receivers import receiving

IMAGES = Path(__file__).parents[2] / "docs" / "images"
DESK = {"viewport": {"width": 1440, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}
PATIENCE_MS = 180_000
MANY = re.compile(r"1[2-9]|[2-9]\d|\d{3}")
_PAUSE_MS = 700

# What a reader of the documents sees is not the name of the machine that they were made on.
_RENAME = """(host) => {
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode;
    if (text.data.includes(host)) text.data = text.data.replaceAll(host, "studio");
  }
}"""


def png(pixels: Any) -> bytes:
    """Return an array as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def send(service: Service, name: str, pixels: Any, **fields: object) -> str:
    """Submit a photograph under its name."""
    answer = service.client.post(
        "/v1/jobs",
        files={"file": (name, png(pixels))},
        data={key: str(value) for key, value in fields.items()},
    )
    return str(answer.raise_for_status().json()["id"])


def prepare(service: Service, receiver: str) -> dict[str, str]:
    """Make something of everything that pages show; returns jobs by what became of them."""
    service.client.post(
        "/v1/webhooks", json={"url": receiver, "description": "album server"}
    ).raise_for_status()
    service.make_key("jobs:read")
    album = json.dumps({"album": "spring", "camera": "X100"})
    jobs = {
        "succeeded": send(
            service, "astronaut.png", photographs.astronaut(), effort=3, bpp=0.5, metadata=album
        )
    }
    send(service, "chelsea.png", photographs.chelsea(), effort=2, metadata=album)
    jobs["failed"] = send(service, "tile.png", photographs.brick()[:64, :64], effort=1, psnr=99)
    send(service, "coffee.png", photographs.coffee(), effort=2)
    send(service, "hubble.png", photographs.hubble_deep_field()[:400, :600], effort=1)
    cancelled = send(service, "draft.png", photographs.camera(), effort=5)
    service.client.post(f"/v1/jobs/{cancelled}/cancel").raise_for_status()
    jobs["running"] = send(service, "rocket.png", photographs.rocket(), effort=9)
    send(service, "retina.png", photographs.retina()[::2, ::2], effort=5)
    jobs["queued"] = send(service, "page.png", photographs.page(), effort=2)
    return jobs


def take(tab: Tab, path: str, to: Path, *, whole: bool = True) -> None:
    """Open a page, wait until it has settled, and take it."""
    page = tab.open(path)
    if path.startswith("/jobs/"):
        settled = "#page:not([data-state=succeeded]), .rd-table"
        page.locator(settled).first.wait_for(timeout=PATIENCE_MS)
    page.wait_for_timeout(_PAUSE_MS)
    page.evaluate(_RENAME, socket.gethostname().split(".")[0])
    page.screenshot(path=to, full_page=whole)
    print(to)


def small(path: Path) -> None:
    """Rewrite a picture in as few bytes as PNG can."""
    image = Image.open(path).convert("RGB")
    image.save(path, optimize=True)


def run(folder: Path, keep: bool) -> None:
    """Start the service, give it work, and take the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"NIF_WEBHOOK_ALLOW_INSECURE": "1", "NIF_REQUESTS_PER_MINUTE": "0"}
    with (
        tempfile.TemporaryDirectory() as data,
        receiving() as receiver,
        EmbeddedService(Path(data, "data"), Path(data, "log"), settings) as running,
        browsing() as browser,
    ):
        service = Service(running.url, running.key)
        jobs = prepare(service, receiver.url)
        print("fitting some photographs", flush=True)
        service.until(jobs["running"], "running", seconds=PATIENCE_MS / 1000 * 2)
        first = Tab(browser, running.url, running.key)
        # Let the picture come into focus and the curves of the overview have a few samples.
        first.open(f"/jobs/{jobs['running']}")
        drawn = first.page.locator("#curve")
        expect(drawn).to_have_attribute("data-points", MANY, timeout=PATIENCE_MS)
        signed_in = first.cookies()
        paths = {
            "overview": "",
            "jobs": "/jobs",
            "job-running": f"/jobs/{jobs['running']}",
            "job-succeeded": f"/jobs/{jobs['succeeded']}",
            "job-failed": f"/jobs/{jobs['failed']}",
            "job-queued": f"/jobs/{jobs['queued']}",
            "dead": "/dead",
            "webhooks": "/webhooks",
            "workers": "/workers",
            "queues": "/queues",
            "keys": "/keys",
            "audit": "/audit",
        }
        endpoint = service.client.get("/v1/webhooks").json()["items"][0]["id"]
        paths["webhook"] = f"/webhooks/{endpoint}"
        for theme in ("light", "dark"):
            for shape, view in (("desk", DESK), ("phone", PHONE)):
                door = Tab(browser, running.url, None, color_scheme=theme, **view)
                take(door, "/login", folder / f"login-{shape}-{theme}.png")
                door.close()
                tab = Tab(
                    browser, running.url, None, storage_state=signed_in, color_scheme=theme, **view
                )
                for name, path in paths.items():
                    take(tab, path, folder / f"{name}-{shape}-{theme}.png")
                tab.close()
        if keep:
            view = {"viewport": {"width": 1280, "height": 860}}
            for name, path, theme in (
                ("dashboard-job", paths["job-succeeded"], "light"),
                ("dashboard-overview", "", "dark"),
            ):
                tab = Tab(
                    browser, running.url, None, storage_state=signed_in, color_scheme=theme, **view
                )
                take(tab, path, IMAGES / f"{name}.png", whole=False)
                small(IMAGES / f"{name}.png")
                tab.close()
        service.client.close()


def main() -> int:
    """Take the pictures; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.dashboard.screenshots")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--keep", action="store_true", help="renew docs/images/dashboard-*.png")
    arguments = parser.parse_args()
    if chromium() is None:
        print("no Chromium on this machine (Debian: apt-get install chromium)", file=sys.stderr)
        return 1
    run(arguments.folder, arguments.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
