"""A real browser at the dashboard: Chromium of this machine, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

HOME = "/dashboard"
AXE = Path(__file__).with_name("vendor") / "axe.min.js"
_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)
_PATIENCE_MS = 60_000


def chromium() -> str | None:
    """Return the path of a Chromium, None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextmanager
def browsing() -> Iterator[Browser]:
    """Run a browser for the time of a context."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=list(_ARGUMENTS), timeout=60_000
        )
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page of somebody who is signed in, and whatever the browser complained about.

    Attributes:
        page: Playwright's.
        complaints: errors of scripts, the policy and the console; a test expects none.
    """

    def __init__(self, browser: Browser, url: str, key: str | None, **more: Any) -> None:
        self.url = url
        self.complaints: list[str] = []
        self._context: BrowserContext = browser.new_context(**more)
        self._context.set_default_timeout(_PATIENCE_MS)
        self.page: Page = self._context.new_page()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type == "error" else None,
        )
        if key is not None:
            self.sign_in(key)

    def sign_in(self, key: str) -> None:
        """Fill in the form."""
        self.page.goto(f"{self.url}{HOME}/login")
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url(f"{self.url}{HOME}")

    def cookies(self) -> Any:
        """Return what makes another tab signed in as well."""
        return self._context.storage_state()

    def open(self, path: str = "") -> Page:
        """Go to a page of the dashboard."""
        self.page.goto(f"{self.url}{HOME}{path}")
        return self.page

    def findings(self, *rules: str) -> list[str]:
        """Return what axe finds serious or worse on the page, by all rules or some."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE.read_text("utf-8"))
        asked = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
        found = self.page.evaluate("asked => axe.run(asked)", asked)
        return [
            f"{each['id']}: {node['target']} {node['failureSummary']}"
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    def close(self) -> None:
        """Close it."""
        self._context.close()


DROP = """([name, type, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type }));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(
      new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }));
}"""
"""Drops a file anywhere on the page, as a person would."""
