"""The dashboard as a person meets it: Chromium against the whole service, as `make serve` runs it.

Real Redis, Celery worker, light worker and uvicorn; pictures are fitted for real, small ones.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from api.embedded import EmbeddedService
from tests.dashboard.browsing import DROP, HOME, Tab, browsing, chromium
from tests.dashboard.whole_service import Service, waves
from tests.worker.receivers import Receiver, receiving

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)
expect = playwright.expect

PAGES = ("", "/jobs", "/dead", "/webhooks", "/workers", "/queues", "/keys", "/audit")
PATIENCE_MS = 60_000
# by itself it gives a page five seconds
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("whole")
    settings = {
        "NIF_DEVICE": "cpu",
        "NIF_CHILD_THREADS": "1",
        "NIF_HEARTBEAT_SECONDS": "1",
        "NIF_LEASE_SECONDS": "20",
        "NIF_WEBHOOK_ALLOW_INSECURE": "1",
        "NIF_REQUESTS_PER_MINUTE": "0",
        "NIF_LOG_LEVEL": "warning",
    }
    with EmbeddedService(folder / "data", folder / "log", settings) as running:
        found = Service(running.url, running.key)
        try:
            yield found
        finally:
            found.client.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as found:
        yield found


_cookies: dict[str | None, Any] = {}


@pytest.fixture
def tabs(service: Service, browser: Any) -> Iterator[Callable[..., Tab]]:
    made: list[Tab] = []

    def open_tab(key: str | None = service.key, **more: Any) -> Tab:
        # Signing in is tested once and limited; the others come with the cookie of the first.
        if key in _cookies:
            made.append(Tab(browser, service.url, None, storage_state=_cookies[key], **more))
        else:
            made.append(Tab(browser, service.url, key, **more))
            if key is not None:
                _cookies[key] = made[-1].cookies()
        return made[-1]

    yield open_tab
    for each in made:
        each.close()
    assert [said for each in made for said in each.complaints] == []


@pytest.fixture
def tab(tabs: Callable[..., Tab]) -> Tab:
    return tabs()


@pytest.fixture(scope="module")
def done(service: Service) -> str:
    """A job that succeeded; its picture is shared by the tests that only look."""
    job = service.submit(waves(1), effort=1, metadata=json.dumps({"album": "waves"}))
    service.until(job, "succeeded")
    return job


@pytest.fixture(scope="module")
def failed(service: Service) -> str:
    job = service.submit(waves(2, 32, 32), effort=1, psnr=99)
    service.until(job, "failed")
    return job


def test_signing_in_and_out(service: Service, tabs: Callable[..., Tab]) -> None:
    tab = tabs(None)
    page = tab.open("/workers")
    expect(page).to_have_url(re.compile(r"/login\?next="))
    page.get_by_label("API key").fill("nif_" + "w" * 43)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not valid")
    tab.complaints.clear()  # the console tells of the status 401 that was meant
    page.get_by_label("API key").fill(service.key)
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{service.url}{HOME}/workers")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.go_back()
    expect(page.get_by_label("API key")).to_be_visible()


def test_a_dropped_picture_is_followed_to_its_end_and_compared(service: Service, tab: Tab) -> None:
    page = tab.open()
    data = waves(11, 192, 128)
    page.evaluate(DROP, ["dropped.png", "image/png", base64.b64encode(data).decode()])
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("dropped.png, 192×128")
    page.get_by_label("Effort").fill("4")
    expect(page.locator("#estimate")).to_contain_text("of work")
    dialog.get_by_role("button", name="Submit").click()
    page.wait_for_url(re.compile(r"/jobs/job_"))
    page.evaluate("window.unharmed = true")
    job = page.url.rpartition("/")[2]
    assert service.job(job)["parameters"]["effort"] == 4

    # It is watched without a reload: pushed events draw the curve and end the page's waiting.
    expect(page.locator("h1 .pill")).to_have_text("running", timeout=PATIENCE_MS)
    expect(page.locator("#viewer")).to_have_attribute("data-stream", "open")
    expect(page.locator("#curve")).to_have_attribute("data-points", re.compile(r"[3-9]|\d\d"))
    expect(page.locator("#viewer")).to_have_attribute("data-preview", re.compile(r"\d+"))
    asked = str(round(0.45 * 192 * 128 / 8))  # what quality 75 stands for
    expect(page.locator("#curve")).to_have_attribute("data-budget", asked)
    expect(page.locator(".legend")).to_contain_text("size asked for")
    expect(page.locator("h1 .pill")).to_have_text("succeeded", timeout=PATIENCE_MS)
    expect(page.locator("#curve")).to_have_attribute("data-sizes", re.compile("[1-9]"))
    assert page.evaluate("window.unharmed") is True
    report = service.client.get(f"/v1/jobs/{job}/report").json()["report"]
    expect(page.locator(".strip")).to_contain_text(f"{report['psnr_db']:.2f} dB")
    lit = page.locator(".machine.landscape .edge.lit text").all_text_contents()
    assert lit == ["create", "claim", "succeed"]

    expect(page.locator(".rd-table")).to_contain_text("AVIF", timeout=PATIENCE_MS)
    expect(page.locator(".rd-table")).to_contain_text("JPEG")
    compare(page, data, service.client.get(f"/v1/jobs/{job}/image").content)


def compare(page: Any, original: bytes, decoded: bytes) -> None:
    """Split, zoom to pixels and look at the difference, by keys and by mouse."""
    viewer, stage = page.locator("#viewer"), page.locator(".stage")
    expect(viewer).to_have_attribute("data-decoded", "1", timeout=PATIENCE_MS)
    split = page.get_by_role("slider", name="Split between original and decoded")
    expect(split).to_have_attribute("aria-valuenow", "50")
    stage.focus()
    page.keyboard.press("ArrowRight")
    expect(split).to_have_attribute("aria-valuenow", "52")
    box, handle = stage.bounding_box(), split.bounding_box()
    page.mouse.move(handle["x"] + 12, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20, steps=4)
    page.mouse.up()
    expect(split).to_have_attribute("aria-valuenow", "25")

    # At six screen pixels per pixel and more, each side of the split shows exactly its picture.
    page.get_by_role("button", name="Fit").click()
    page.get_by_role("button", name="1:1").click()
    stage.focus()
    for _ in range(4):
        page.keyboard.press("+")
    expect(viewer).to_have_attribute("data-scale", f"{1.6**4:.3f}")
    want = {
        "original": np.asarray(Image.open(io.BytesIO(original)).convert("RGB")),
        "decoded": np.asarray(Image.open(io.BytesIO(decoded)).convert("RGB")),
    }
    for key, name in (("2", "original"), ("3", "decoded")):
        page.keyboard.press(key)
        expect(viewer).to_have_attribute("data-mode", name)
        shown = Image.open(io.BytesIO(stage.screenshot())).convert("RGB")
        x, y, said = well_inside_a_pixel(page)
        place = re.match(r"(\d+), (\d+): (\d+ \d+ \d+) → (\d+ \d+ \d+)", said)
        assert place is not None, said
        column, row = int(place[1]), int(place[2])
        expected = want[name][row, column]
        assert tuple(shown.getpixel((x, y))) == tuple(int(each) for each in expected)
        assert place[3] == " ".join(map(str, want["original"][row, column]))
        assert place[4] == " ".join(map(str, want["decoded"][row, column]))
    page.keyboard.press("4")
    expect(viewer).to_have_attribute("data-mode", "difference")
    page.locator(".gain select").select_option("16")
    expect(page.locator(".stage .right")).to_have_text("difference × 16")
    page.get_by_role("button", name="Split", exact=True).click()


def well_inside_a_pixel(page: Any) -> tuple[int, int, str]:
    """Return a place near the middle of the stage that is no edge of a pixel, and what is said."""
    box = page.locator(".stage").bounding_box()
    middle = int(box["width"]) // 2, int(box["height"]) // 2

    def said_at(x: int, y: int) -> str:
        page.mouse.move(box["x"] + x, box["y"] + y)
        return str(page.locator("[data-pixel]").text_content())

    for step in range(8):
        x, y = middle[0] + step, middle[1] + step
        said = {said_at(x + by, y + by) for by in (-2, 2, 0)}
        if len(said) == 1:
            return x, y, said.pop()
    raise AssertionError("no pixel is six wide")


def test_cancelling_a_running_job(service: Service, tab: Tab) -> None:
    job = service.submit(waves(21, 320, 240), effort=9)
    page = tab.open(f"/jobs/{job}")
    expect(page.locator("h1 .pill")).to_have_text("running", timeout=PATIENCE_MS)
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("h1 .pill")).to_have_text("cancelled", timeout=PATIENCE_MS)
    assert service.until(job, "cancelled")["attempts"][0]["end"] == "cancelled"
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete the job").click()
    expect(page.get_by_role("status")).to_contain_text("deleted")
    assert service.client.get(f"/v1/jobs/{job}").status_code == 404


def test_a_stream_that_is_refused_is_opened_again(service: Service, tab: Tab) -> None:
    job = service.submit(waves(23, 320, 240), effort=9)
    service.until(job, "running")
    page = tab.page
    answers: list[int] = []
    refusing = True

    def answer(route: Any) -> None:
        # The first stream breaks, as at a restart; the browser asks by itself, and is refused.
        if not answers:
            answers.append(200)
            route.fulfill(status=200, content_type="text/event-stream", body="retry: 50\n\n")
        elif refusing:
            answers.append(503)
            route.fulfill(status=503, content_type="application/problem+json", body="{}")
        else:
            answers.append(0)
            route.continue_()

    page.route("**/events*", answer)
    with page.expect_response(lambda each: each.status == 503):
        tab.open(f"/jobs/{job}")
    expect(page.locator("#live")).to_have_text("Reconnecting")
    expect(page.locator("#viewer")).to_have_attribute("data-stream", "lost")
    refusing = False
    expect(page.locator("#viewer")).to_have_attribute("data-stream", "open", timeout=PATIENCE_MS)
    expect(page.locator("#live")).to_have_text("Live")
    assert (answers[0], answers[-1]) == (200, 0)
    assert set(answers[1:-1]) == {503}
    before = int(page.locator("#curve").get_attribute("data-points") or 0)
    page.wait_for_function(
        "before => Number(document.querySelector('#curve').dataset.points) > before",
        arg=before,
        timeout=PATIENCE_MS,
    )
    service.client.post(f"/v1/jobs/{job}/cancel").raise_for_status()
    expect(page.locator("h1 .pill")).to_have_text("cancelled", timeout=PATIENCE_MS)
    assert all("503" in each for each in tab.complaints)
    tab.complaints.clear()


def test_an_original_that_has_to_wait_is_asked_for_again(tab: Tab, done: str) -> None:
    page = tab.page
    answers: list[int] = []

    def answer(route: Any) -> None:
        answers.append(503 if not answers else 0)
        if answers[-1]:
            route.fulfill(status=503, headers={"Retry-After": "1"}, body="")
        else:
            route.continue_()

    page.route("**/original", answer)
    tab.open(f"/jobs/{done}")
    expect(page.locator(".stage .left")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator(".stage .said")).to_be_hidden()
    assert answers == [503, 0]
    assert all("503" in each for each in tab.complaints)
    tab.complaints.clear()


def test_finishing_now_keeps_the_best_so_far(service: Service, tab: Tab) -> None:
    job = service.submit(waves(22, 320, 240), effort=9)
    page = tab.open(f"/jobs/{job}")
    expect(page.locator("#curve")).to_have_attribute(
        "data-points", re.compile(r"\d+"), timeout=PATIENCE_MS
    )
    page.get_by_role("button", name="Finish now").click()
    expect(page.locator("h1 .pill")).to_have_text("succeeded", timeout=PATIENCE_MS)
    expect(page.locator(".strip")).to_contain_text("early")
    report = service.client.get(f"/v1/jobs/{job}/report").json()["report"]
    assert report["complete"] is False


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def test_a_webhook_is_made_tested_and_replayed(
    service: Service, tab: Tab, receiver: Receiver
) -> None:
    page = tab.open("/webhooks")
    page.get_by_label("URL").fill(receiver.url)
    page.get_by_role("button", name="Make the endpoint").click()
    secret = page.locator("#secret").text_content()
    page.get_by_role("link", name=receiver.url).click()
    page.get_by_role("button", name="Send a test").click()
    delivered = page.locator("tbody .pill.good")
    expect(delivered).to_have_text("delivered", timeout=PATIENCE_MS)
    expect(page.locator("tbody")).to_contain_text("status 204")
    page.get_by_role("button", name="Replay", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("sent again")
    expect(page.locator("tbody td.asked")).to_have_text("2", timeout=PATIENCE_MS)
    assert len(receiver.received) == 2
    assert len(set(receiver.ids())) == 1
    for each in receiver.received:
        assert each.verified(secret)["type"] == "webhook.test"
    page.get_by_role("button", name="Disable").click()
    expect(page.locator("h1 .pill")).to_have_text("disabled")


def test_draining_a_worker(service: Service, tab: Tab) -> None:
    page = tab.open("/workers")
    card = page.locator("article.worker")
    expect(card).to_have_count(1)
    expect(card.locator(".bars")).to_contain_text("CPU")
    card.get_by_role("button", name="Drain").click()
    expect(card.locator(".pill")).to_have_text("draining")
    (worker,) = [
        each
        for each in service.client.get("/v1/workers").json()["items"]
        if each["facts"].get("role") != "light"
    ]
    assert worker["draining"] is True
    card.get_by_role("button", name="Resume").click()
    expect(card.locator(".pill")).to_have_text(re.compile("idle|busy"))
    assert service.client.get(f"/v1/workers/{worker['id']}").json()["draining"] is False


def test_a_read_only_key_looks_and_is_refused(
    service: Service, tabs: Callable[..., Tab], done: str
) -> None:
    tab = tabs(service.make_key("jobs:read"))
    page = tab.open(f"/jobs/{done}")
    expect(page.locator("h1")).to_contain_text("waves.png")
    expect(page.locator(".who")).to_contain_text("read-only key")
    for name in ("Submit a picture", "Delete…"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    page.evaluate(DROP, ["x.png", "image/png", base64.b64encode(waves(3)).decode()])
    expect(page.get_by_role("dialog")).to_have_count(0)
    refused = page.evaluate(
        """async (path) => {
          const body = new URLSearchParams({ csrf: document.body.dataset.csrf, confirmed: "1" });
          return (await fetch(path, { method: "POST", body })).status;
        }""",
        f"{HOME}/jobs/{done}/delete",
    )
    assert refused == 403
    assert service.job(done)["state"] == "succeeded"
    assert all("403" in each for each in tab.complaints)
    tab.complaints.clear()


def test_the_keyboard_is_enough(service: Service, tab: Tab, done: str, failed: str) -> None:
    page = tab.open("/jobs")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("next, previous row")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("album=waves")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("album=waves")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.keyboard.press("j")
    expect(page.locator("tr[data-current]")).to_contain_text(done)
    page.keyboard.press("x")
    expect(page.get_by_role("button", name="Retry…")).to_be_enabled()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(done))

    page = tab.open("/jobs")
    links = page.locator("tr [data-open]")
    total = links.count()
    assert total >= 2
    for _ in range(total + 1):
        page.keyboard.press("j")
    expect(links.nth(total - 1)).to_be_focused()
    page.keyboard.press("k")
    expect(links.nth(total - 2)).to_be_focused()


def test_a_page_refreshes_itself_but_not_while_nobody_looks(tab: Tab, done: str) -> None:
    page = tab.open("/jobs")
    asked: list[str] = []
    page.on("request", lambda each: asked.append(each.url) if "/jobs" in each.url else None)
    page.evaluate("document.querySelector('[data-live]').dataset.every = 100")
    with page.expect_response(lambda each: each.url.endswith("/jobs") and each.status == 200):
        pass
    page.evaluate(
        "Object.defineProperty(document, 'hidden', { get: () => true, configurable: true })"
    )
    page.wait_for_timeout(600)  # what was on its way has come
    before = len(asked)
    page.wait_for_timeout(1500)
    assert len(asked) == before
    page.evaluate(
        "Object.defineProperty(document, 'hidden', { get: () => false, configurable: true });"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    with page.expect_response(lambda each: each.url.endswith("/jobs")):
        pass
    page.get_by_role("button", name="Live").click()
    expect(page.locator("#live")).to_have_text("Held")


def test_choosing_rows_survives_and_holds_the_page(tab: Tab, done: str, failed: str) -> None:
    page = tab.open("/jobs")
    box = page.locator(f"#row-{failed} input")
    box.check()
    expect(page.locator("[data-chosen]")).to_contain_text("1 chosen")
    page.evaluate("document.querySelector('[data-live]').dataset.every = 100")
    page.wait_for_timeout(500)
    expect(box).to_be_checked()
    page.get_by_role("button", name="Retry…").click()
    expect(page.get_by_role("heading", name="Retry 1 job?")).to_be_visible()
    page.get_by_role("link", name="No, go back").click()
    expect(page).to_have_url(re.compile("/jobs$"))


DESK: dict[str, Any] = {"viewport": {"width": 1280, "height": 720}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True}


@pytest.mark.parametrize("view", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_serious(
    service: Service,
    tabs: Callable[..., Tab],
    done: str,
    failed: str,
    view: dict[str, Any],
) -> None:
    tab = tabs(color_scheme="light", **view)
    found: dict[str, list[str]] = {}

    def look(what: str) -> None:
        """Look at the page in both themes; the other one has other colours alone."""
        background = "getComputedStyle(document.body).backgroundColor"
        light = tab.page.evaluate(background)
        found[what] = tab.findings()
        tab.page.emulate_media(color_scheme="dark")
        assert tab.page.evaluate(background) != light
        found[f"{what} in the dark"] = tab.findings("color-contrast", "link-in-text-block")
        tab.page.emulate_media(color_scheme="light")

    for path in (*PAGES, f"/jobs/{done}", f"/jobs/{failed}", "/none"):
        page = tab.open(path)
        if path == f"/jobs/{done}":
            expect(page.locator(".rd-table")).to_be_visible(timeout=PATIENCE_MS)
        look(path)
    page = tab.open()
    page.keyboard.press("u")
    look("upload")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    look("help")
    assert {path: each for path, each in found.items() if each} == {}
    assert all("404" in each for each in tab.complaints)
    tab.complaints.clear()


def test_axe_finds_nothing_serious_at_the_door(tabs: Callable[..., Tab]) -> None:
    tab = tabs(None)
    tab.open("/login")
    assert tab.findings() == []


def test_nothing_is_cut_off_on_a_phone(
    service: Service, tabs: Callable[..., Tab], done: str, failed: str
) -> None:
    tab = tabs(**PHONE)
    wide = {}
    for path in (*PAGES, f"/jobs/{done}", f"/jobs/{failed}"):
        page = tab.open(path)
        page.wait_for_load_state("networkidle") if not path.startswith("/jobs/") else None
        wide[path] = page.evaluate("document.documentElement.scrollWidth")
        assert page.locator("main h1").first.bounding_box() is not None
    assert set(wide.values()) == {390}, wide
    expect(page.locator(".machine.portrait")).to_be_visible()
    expect(page.locator(".machine.landscape")).to_be_hidden()


def test_a_finger_on_the_picture_scrolls_the_page_until_it_is_zoomed(
    tabs: Callable[..., Tab], done: str
) -> None:
    tab = tabs(**PHONE)
    page = tab.open(f"/jobs/{done}")
    expect(page.locator("#viewer")).to_have_attribute("data-decoded", "1", timeout=PATIENCE_MS)
    stage = page.locator(".stage")
    pointer = page.context.new_cdp_session(page)

    def swipe() -> float:
        """Pull the picture up by a finger beside the split; return how far the page went."""
        stage.scroll_into_view_if_needed()
        before, box = page.evaluate("scrollY"), stage.bounding_box()
        x, y = box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.8
        for kind, moved in (("touchStart", 0), *(("touchMove", 15 * step) for step in range(11))):
            touch = {"type": kind, "touchPoints": [{"x": x, "y": y - moved}]}
            pointer.send("Input.dispatchTouchEvent", touch)
        pointer.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.wait_for_timeout(300)  # a page may go on by itself for a while
        return float(page.evaluate("scrollY") - before)

    assert swipe() > 50
    scale = page.locator("#viewer").get_attribute("data-scale")
    page.evaluate("scrollTo(0, 0)")
    page.get_by_role("button", name="Zoom in").click()
    expect(page.locator("#viewer")).not_to_have_attribute("data-scale", str(scale))
    expect(stage).to_have_css("touch-action", "none")
    assert swipe() == 0
    page.get_by_role("button", name="Fit").click()
    expect(stage).to_have_css("touch-action", "pan-y")
    expect(page.locator(".stage .split")).to_have_css("touch-action", "none")


def test_the_theme_follows_the_system_and_the_button(tabs: Callable[..., Tab]) -> None:
    tab = tabs(color_scheme="dark")
    page = tab.open()
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.get_by_role("button", name="Switch between light and dark").click()
    light = page.evaluate(colour)
    assert light != dark
    page.reload()
    assert page.evaluate(colour) == light
