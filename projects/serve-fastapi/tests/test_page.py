"""The page in a real Chromium: what a person draws or fills in, and what comes back."""

import contextlib
import hashlib
import math
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
from ray_shared.testing import wait_for
from serve_fastapi import api
from serve_fastapi.security import Guard
from starlette.types import ASGIApp

from .conftest import Server
from .local import LocalService, make_app

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "REQUIRE_CHROMIUM" not in os.environ, reason="chromium is not installed"
)
TIMEOUT_MS = 30_000
EMPTY = "Draw with the mouse or a finger."
Stroke = list[tuple[float, float]]  # Points, as parts of the canvas's width and height.
ONE: Stroke = [(0.5, 0.15), (0.5, 0.85)]
THREE: Stroke = [
    *[(0.33, 0.29), (0.46, 0.17), (0.62, 0.21), (0.67, 0.35), (0.54, 0.5)],
    *[(0.67, 0.62), (0.62, 0.81), (0.46, 0.85), (0.31, 0.75)],
]
ANGLES = [math.tau * i / 24 for i in range(25)]
RING: Stroke = [(0.5 + 0.22 * math.sin(a), 0.5 - 0.34 * math.cos(a)) for a in ANGLES]
UNPROCESSABLE = "Failed to load resource: the server responded with a status of 422"


@dataclass
class Visit:
    """A page, and what went on behind it."""

    page: Page
    hosts: set[str] = field(default_factory=set)
    """To which it sent requests."""
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self._note("error", str(error)))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.messages.append(text)

    def complaints(self) -> list[str]:
        """Errors and warnings on the console, and exceptions of the page's script."""
        self.page.evaluate("0")  # Whatever the browser has told before has arrived after this.
        return self.messages

    def draw(self, *strokes: Stroke) -> None:
        canvas = self.page.locator("canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        for stroke in strokes:
            for number, (x, y) in enumerate(stroke):
                at = (box["x"] + x * box["width"], box["y"] + y * box["height"])
                self.page.mouse.move(*at, steps=3)
                if number == 0:
                    self.page.mouse.down()
            self.page.mouse.up()

    def answers(self, output: str, *lines: str) -> None:
        """Waits until an output shows these lines, which are regular expressions."""
        pattern = re.compile("^" + "\n".join(lines) + "$")
        expect(self.page.locator(output)).to_have_text(pattern, timeout=TIMEOUT_MS)

    def offers(self, *models: str) -> None:
        """Waits for the names of the models of digits."""
        options = self.page.locator("#digit-model option")
        expect(options).to_have_text(models, timeout=TIMEOUT_MS)

    def fails(self, output: str, text: str) -> None:
        """Waits until an output shows an error."""
        shown = self.page.locator(f"{output}.error")
        expect(shown).to_have_text(text, timeout=TIMEOUT_MS, use_inner_text=True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None, "chromium is not installed"
    env = os.environ | {"HOME": str(tmp_path_factory.mktemp("home"))}  # It leaves files there.
    # Only for this file: Playwright's event loop runs in this thread until the block ends, and the
    # `asyncio.run` of other tests does not work beside it.
    with sync_playwright() as playwright:
        launch = playwright.chromium.launch
        browser = launch(executable_path=CHROMIUM, args=["--no-sandbox"], env=env)
        yield browser
        browser.close()


@contextlib.contextmanager
def visiting(browser: Browser, address: str) -> Iterator[Visit]:
    with browser.new_context() as context:
        visit = Visit(context.new_page())
        visit.page.goto(address)
        yield visit


@pytest.fixture
def visit(browser: Browser, served: Server) -> Iterator[Visit]:
    with visiting(browser, served.address) as visit:
        visit.offers("digits", "digits-small")
        yield visit


@pytest.fixture
def versions(served: Server) -> dict[str, str]:
    """Name of a model to its version."""
    found: dict[str, str] = httpx.get(f"{served.address}/version", timeout=30).json()["models"]
    return found


@contextlib.contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """An application in a thread; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, "server", 30)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def test_drawn_digit_is_told_with_model_version_and_latency(
    visit: Visit, served: Server, versions: dict[str, str]
):
    for label, stroke in (("1", ONE), ("0", RING), ("3", THREE)):
        visit.page.get_by_role("button", name="Clear").click()
        visit.answers("#digit-answer", re.escape(EMPTY))
        visit.draw(stroke)
        who = rf"digits {versions['digits']}, \d+\.\d ms"
        visit.answers("#digit-answer", rf"{label} \(\d+ %\)", who)
        bars = "bars => bars.map(bar => bar.getBoundingClientRect().height)"
        heights = visit.page.locator("#bars i").evaluate_all(bars)
        assert len(heights) == 10
        assert heights.index(max(heights)) == int(label)
        assert max(heights) > 10
    assert visit.complaints() == []
    assert visit.hosts == {urlsplit(served.address).netloc}


def test_size_and_place_of_a_drawing_do_not_matter(visit: Visit):
    shown = set()
    for size, left, top in ((1.0, 0.0, 0.0), (0.4, 0.05, 0.5)):
        visit.page.get_by_role("button", name="Clear").click()
        visit.draw([(left + size * x, top + size * y) for x, y in THREE])
        visit.answers("#digit-answer", r"3 \(\d+ %\)", ".*")
        shown.add(visit.page.locator("#digit-answer").inner_text().splitlines()[0])
    assert len(shown) == 1


def test_digit_of_two_strokes_is_one_digit(visit: Visit):
    visit.draw([(0.58, 0.15), (0.28, 0.62), (0.74, 0.62)], [(0.6, 0.42), (0.6, 0.87)])
    visit.answers("#digit-answer", r"4 \(\d+ %\)", ".*")


def test_other_model_answers_about_the_same_drawing(visit: Visit, versions: dict[str, str]):
    visit.page.locator("#digit-model").select_option("digits-small")
    visit.draw(THREE)
    for name in ("digits-small", "digits"):
        visit.page.locator("#digit-model").select_option(name)
        visit.answers("#digit-answer", r"3 \(\d+ %\)", rf"{name} {versions[name]}, \S+ ms")
    assert visit.complaints() == []


def test_described_trip_takes_minutes(visit: Visit, served: Server, versions: dict[str, str]):
    trip = {
        "pickup_at": "2026-01-10T08:05",
        "distance_miles": 7.25,
        "pickup_zone": 12,
        "dropoff_zone": 30,
    }
    labels = ("Pick-up", "Miles", "From zone", "To zone")
    for label, value in zip(labels, trip.values(), strict=True):
        visit.page.get_by_label(label).fill(str(value))
    with visit.page.expect_request("**/v1/trips") as sent:
        visit.page.get_by_role("button", name="Predict").click()
    assert sent.value.post_data_json == trip
    answer = httpx.post(f"{served.address}/v1/trips", json=trip, timeout=30)
    who = rf"trips {versions['trips']}, \d+\.\d ms"
    visit.answers("#trip-answer", rf"{answer.json()['minutes']:.1f} minutes", who)
    assert visit.complaints() == []
    assert visit.hosts == {urlsplit(served.address).netloc}


def test_errors_are_told_in_the_words_of_the_server(visit: Visit):
    zone = visit.page.get_by_label("From zone")
    predict = visit.page.get_by_role("button", name="Predict")
    zone.fill("5000")
    predict.click()
    visit.fails("#trip-answer", "pickup_zone: the model knows no zone 5000")
    zone.fill("10000")
    predict.click()
    reason = "pickup_zone: Input should be less than or equal to 9999"
    visit.fails("#trip-answer", f"the request is not valid\n{reason}")
    zone.fill("5")
    predict.click()
    visit.answers("#trip-answer", r"\d+\.\d minutes", "trips .*")
    expect(visit.page.locator("#trip-answer")).to_have_class("done")
    # The browser itself names every refused request, and there is nothing else.
    assert [text.partition(" (")[0] for text in visit.complaints()] == [UNPROCESSABLE] * 2


def test_application_that_is_gone_is_told(visit: Visit):
    visit.page.route("**/v1/trips", lambda route: route.abort())
    visit.page.get_by_role("button", name="Predict").click()
    visit.fails("#trip-answer", "No answer: Failed to fetch")
    visit.page.unroute("**/v1/trips")
    visit.page.route("**/v1/trips", lambda route: route.fulfill(status=502, body="<html>"))
    visit.page.get_by_role("button", name="Predict").click()
    visit.fails("#trip-answer", "HTTP status 502")


def test_answer_to_a_cleared_drawing_is_not_shown(visit: Visit):
    held: list[Route] = []
    visit.page.route("**/v1/digits/image", lambda route: held.append(route))
    with visit.page.expect_request("**/v1/digits/image"):
        visit.draw(THREE)
    with visit.page.expect_event("requestfailed") as dropped:
        visit.page.get_by_role("button", name="Clear").click()
    assert dropped.value.failure == "net::ERR_ABORTED"
    held[0].abort()
    visit.answers("#digit-answer", re.escape(EMPTY))
    assert visit.page.locator("#bars i").count() == 0
    assert visit.complaints() == []


def test_policy_lets_no_other_script_run(visit: Visit, served: Server):
    policy = httpx.get(served.address, timeout=30).headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    visit.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
        }"""
    )
    assert visit.page.evaluate("window.ran") is None
    (refused,) = visit.complaints()
    assert "Content Security Policy" in refused


def test_page_asks_for_the_key_and_sends_it(browser: Browser, bundles: dict[str, str]):
    key = "a key for this test"
    guard = Guard(frozenset({hashlib.sha256(key.encode()).digest()}), 1 << 20, 0)
    refusal = "no API key, or not a valid one"
    # The models are loaded with the first question.
    app = make_app(LocalService(bundles), guard, api.Limits(max_rows=1, deadline_s=60))
    with running(app) as address, visiting(browser, address) as visit:
        visit.fails("#key-answer", refusal)
        visit.draw(THREE)
        visit.fails("#digit-answer", refusal)
        visit.page.locator("#key").fill("another key")
        visit.page.get_by_role("button", name="Predict").click()
        visit.fails("#trip-answer", refusal)
        visit.page.locator("#key").fill(key)
        visit.page.keyboard.press("Enter")
        visit.answers("#key-answer", "")
        visit.offers("digits", "digits-small")
        visit.draw(THREE)
        visit.answers("#digit-answer", ".*", "digits .*")
