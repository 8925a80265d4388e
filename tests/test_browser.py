"""The report in a reader's browser, wide and narrow, light and dark: no complaint, no request, nothing sticks out."""

import os

import pytest

from rcmnet_jax.report import render
from tests import browser
from tests.test_report import HOSTILE, example, rich

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    if browser.executable() is None:
        pytest.skip(f"no browser here ({', '.join(browser.NAMES)}): install Debian's package chromium")
    page = tmp_path_factory.mktemp("page") / "report.html"
    page.write_text(render(rich(example(classes=(*HOSTILE, "a" * 90)))), encoding="utf-8")
    with browser.Browser() as window:
        yield window, page


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
def test_it_opens_without_complaint_requests_or_overflow(opened, width, dark):
    window, page = opened
    window.open(page, width=width, dark=dark)
    window.value("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
    assert window.requests() == [page.as_uri()]
    assert window.complaints() == []
    assert window.value("document.documentElement.scrollWidth <= innerWidth")
    assert window.value("[...document.images].length") > 18
    assert window.value("document.title") == "A to B"


def test_light_and_dark_have_text_that_can_be_read(opened):
    window, page = opened
    for dark in (False, True):
        window.open(page, dark=dark)
        style = "getComputedStyle(document.body)"
        ink, paper = (
            sum(map(int, window.value(f"{style}.{name}").removeprefix("rgb(").removesuffix(")").split(",")))
            for name in ("color", "backgroundColor")
        )
        assert (ink > paper) == dark
        assert abs(ink - paper) > 450  # of 765


def press(window, key, code, text=""):
    for kind in ("keyDown", "keyUp"):
        window.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)


def test_the_keyboard_reaches_the_results_and_every_table(opened):
    window, page = opened
    window.open(page)
    window.value("tables = [...document.querySelectorAll('table')]; here = () => document.activeElement")
    count = window.value("tables.length")
    reached, tables = [], set()
    while len(reached) < 150 and (not reached or reached[-1] != "BODY"):
        press(window, "Tab", 9)
        reached.append(window.value("here().className + here().tagName"))
        if reached[-1] == "SUMMARY":  # tables in a closed part are reached once it is opened
            press(window, "Enter", 13, "\r")
        if reached[-1] == "scrollDIV":
            tables.add(window.value("tables.findIndex(table => here().contains(table))"))
            assert len(window.value("here().getAttribute('aria-label')")) > 5
            assert window.value("here().getAttribute('role')") == "region"
    assert reached[0] == "skipA"
    assert reached[-1] == "BODY"  # no part keeps the keyboard
    assert tables == set(range(count))
    assert count == 10


def test_it_prints(opened):
    window, page = opened
    window.open(page)
    made = window.call("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.7)["data"]
    assert 30_000 < len(made) < 20_000_000


def test_a_page_that_fetches_is_caught(tmp_path):
    if browser.executable() is None:
        pytest.skip("no browser here: install Debian's package chromium")
    page = tmp_path / "bad.html"
    page.write_text(f"<img src='file://{os.sep}nowhere.png'><script>console.error('x')</script>", encoding="utf-8")
    with browser.Browser() as window:
        window.open(page)
        assert len(window.requests()) == 2
        assert window.complaints()
