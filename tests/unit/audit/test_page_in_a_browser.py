"""The page as a browser lays it out. Where no Chromium is installed the test says so: nothing else here needs one."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.audit import report
from services.audit.rendering import rendered
from tests.unit.audit.test_rendering import FIGURES, HOSTILE, held_by
from tests.unit.audit.test_report import statement

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
NO_BROWSER = "no Chromium on the path (chromium, chromium-browser, google-chrome): the page is not laid out"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip(NO_BROWSER)
    from playwright.sync_api import sync_playwright

    told = statement(figures=FIGURES)
    told["predicate"]["processing"][0]["choice"] = {"reason": HOSTILE}
    html, _ = rendered(told, digest=report.digest(told), figures=held_by(told))
    path = Path(tmp_path_factory.mktemp("page")) / "report.html"
    path.write_bytes(html.body)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1000, "height": 1400})
        opened.told = []
        opened.on("console", lambda message: opened.told.append(message.text))
        opened.on("request", lambda request: opened.told.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
        opened.goto(path.as_uri())
        yield opened
        browser.close()


def test_the_page_fits_its_width_shows_every_figure_and_asks_and_runs_nothing(page: Any) -> None:
    for width in (1000, 420):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 1000, "height": 1400})
    boxes = [drawing.bounding_box() for drawing in page.locator("figure svg").all()]
    assert len(boxes) == 3
    assert all(box["width"] > 300 and box["height"] > 100 for box in boxes)
    assert page.locator(".verdict .word").is_visible()
    assert page.evaluate("window.pwned") is None
    assert page.told == []


def test_on_paper_no_figure_is_cut_by_the_end_of_a_page(page: Any) -> None:
    page.emulate_media(media="print")
    styles = page.evaluate("[...document.querySelectorAll('figure, tr, .verdict')].map(one => getComputedStyle(one).breakInside)")
    assert set(styles) == {"avoid"}
    paper = page.pdf(format="A4", prefer_css_page_size=True)
    assert paper.startswith(b"%PDF")
    page.emulate_media(media="screen")
