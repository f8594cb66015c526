"""``/docs`` is served whole from here, and its policy forbids anything else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import httpx2
import pytest

from api.docs_page import FILES
from tests.api.asking import code_of
from tests.api.running import Running


class References(HTMLParser):
    """Collects whatever a page refers to, and scripts and styles that are written into it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        self.found += [str(names[name]) for name in ("src", "href", "action") if name in names]
        if tag == "style" or (tag == "script" and "src" not in names):
            self.inline.append(tag)
        self.inline += [name for name in names if name.startswith("on") or name == "style"]


@pytest.fixture
def anybody(running: Running) -> Iterator[httpx2.Client]:
    with running.client(None) as client:
        yield client


def test_the_page_refers_to_nothing_outside(running: Running, anybody: httpx2.Client) -> None:
    answer = anybody.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = References(answer.text)
    assert page.inline == []
    assert len(page.found) == 5
    for reference in page.found:
        assert not urlsplit(reference).netloc
        found = anybody.get(urljoin(f"{running.url}/docs", reference))
        assert found.status_code == 200, reference
        assert found.headers["x-content-type-options"] == "nosniff"
    scripts = [each for each in page.found if each.endswith(".js")]
    kinds = {anybody.get(f"/{each}").headers["content-type"] for each in scripts}
    assert kinds == {"text/javascript; charset=utf-8"}


def test_the_policy_allows_nothing_else(anybody: httpx2.Client) -> None:
    policy = dict(
        each.strip().partition(" ")[::2]
        for each in anybody.get("/docs").headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    for name, sources in policy.items():
        assert set(sources.split()) <= {"'none'", "'self'", "data:"}, name
    assert "data:" not in policy["script-src"]


def test_nothing_of_ours_names_another_host() -> None:
    # The bundle is somebody else's; the policy holds it. Names of XML dialects are no addresses.
    for path in (FILES / "docs.js", FILES / "swagger-ui" / "swagger-ui.css"):
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\(\s*[\"']?//", text), path
    script = (FILES / "docs.js").read_text("utf-8")
    assert "validatorUrl: null" in script


def test_the_files_are_those_that_were_copied() -> None:
    folder = FILES / "swagger-ui"
    rows = re.findall(r"^\| `(\S+)` \| `(\w{64})` \|$", (folder / "README.md").read_text(), re.M)
    assert {name for name, _ in rows} == {each.name for each in folder.iterdir()} - {"README.md"}
    for name, digest in rows:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    assert "Apache License" in (folder / "LICENSE").read_text()


def test_a_browser_need_not_load_a_file_twice(anybody: httpx2.Client) -> None:
    first = anybody.get("/static/swagger-ui/swagger-ui-bundle.js")
    assert first.headers["cache-control"] == "public, no-cache"
    again = anybody.get(
        "/static/swagger-ui/swagger-ui-bundle.js", headers={"If-None-Match": first.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    ["/static/none.js", "/static/", "/static/../app.py", "/static/%2e%2e/app.py", "/redoc"],
)
def test_nothing_else_is_served(anybody: httpx2.Client, path: str) -> None:
    assert code_of(anybody.get(path)) == (404, "not_found")


def test_other_methods_are_refused(anybody: httpx2.Client) -> None:
    for path in ("/docs", "/static/docs.js"):
        assert code_of(anybody.post(path)) == (405, "method_not_allowed")
