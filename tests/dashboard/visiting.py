"""Being at the dashboard without a browser: signing in, and sending forms as a page would."""

from __future__ import annotations

import re
from typing import Any

import httpx2

from tests.api.running import Running

HOME = "/dashboard"


class Visit:
    """One browser's worth of cookies.

    Attributes:
        client: sends them.
        csrf: the token that the pages carry, once signed in.
    """

    def __init__(self, running: Running, key: str | None = None) -> None:
        self.client = httpx2.Client(base_url=running.url, timeout=60.0)
        self.csrf = ""
        if key is not None:
            answer = self.sign_in(key)
            assert answer.status_code == 303, answer.text
            self.csrf = token_in(self.client.get(f"{HOME}/jobs").text)

    def sign_in(self, key: str, **more: str) -> httpx2.Response:
        """Fill in the form and send it."""
        page = self.client.get(f"{HOME}/login")
        fields = {"csrf": token_in(page.text), "key": key, "next": HOME}
        return self.client.post(f"{HOME}/login", data=fields | more)

    def get(self, path: str = "", **more: Any) -> httpx2.Response:
        """Open a page."""
        return self.client.get(f"{HOME}{path}", **more)

    def post(self, path: str, *, csrf: str | None = None, **fields: Any) -> httpx2.Response:
        """Press a button."""
        token = self.csrf if csrf is None else csrf
        return self.client.post(f"{HOME}{path}", data={"csrf": token} | fields)

    def close(self) -> None:
        self.client.close()


def token_in(text: str) -> str:
    """Return the token in a page's form."""
    found = re.search(r'name="csrf" value="([^"]{43})"', text)
    assert found is not None, text[:2000]
    return found[1]
