"""The page in a real browser: it renders, nothing is too wide, nothing keeps anyone out."""

import shutil
from pathlib import Path

import pytest

from enginegate.cli import main

from .reports import ORIGIN, write_report

pytestmark = pytest.mark.xdist_group("browser")  # one browser, each page drawn once
EXAMPLES = Path(__file__).parents[2] / "docs/examples"

WIDTHS = (360, 768, 1440)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
UNFOLD = "document.querySelectorAll('details').forEach(found => { found.open = true })"
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
TOUCHING = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].filter(text => text.textContent.trim()
    && getComputedStyle(text).opacity > 0)
  const seen = texts.map(text => [text.textContent, text.getBoundingClientRect()])
  const shown = seen.filter(([_, box]) => box.width)
  return shown.flatMap(([one, a], i) => shown.slice(i + 1)
    .filter(([_, b]) => a.left < b.right - 1 && b.left < a.right - 1
                     && a.top < b.bottom - 1 && b.top < a.bottom - 1)
    .map(([other]) => `${one} and ${other}`))
})"""
GRAVE = ("serious", "critical")


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if not program:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright()
    with playwright as running:  # its launch makes a fresh user-data-dir
        opened = running.chromium.launch(executable_path=program, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return drawn(write_report(folder / "run.json", origin=ORIGIN), folder / "run.html")


@pytest.fixture(scope="module", params=["report.json", "reference/figures.json"])
def example_url(request, tmp_path_factory):
    return drawn(EXAMPLES / request.param, tmp_path_factory.mktemp("example") / "page.html")


def drawn(saved, page):
    """The address of the page of a saved report."""
    assert main(["report", str(saved), "--html", str(page)]) == 0
    return page.as_uri()


@pytest.fixture
def show(browser, page_url):
    """Open the page; its console errors are in `said`."""
    contexts = []

    def opened(width, scheme="light", url=page_url):
        view = {"width": width, "height": 900}
        context = browser.new_context(viewport=view, color_scheme=scheme, bypass_csp=True)
        contexts.append(context)
        page = context.new_page()
        page.said = []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.said.append(request.url))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_says_nothing_on_the_console(show, page_url, width):
    page = show(width)
    assert page.said == [page_url]
    assert page.evaluate(TOO_WIDE) <= 0
    page.evaluate(UNFOLD)
    assert page.evaluate(TOO_WIDE) <= 0
    assert page.locator("svg:visible").count() >= 8


@pytest.mark.parametrize("width", WIDTHS)
def test_no_two_labels_of_a_picture_touch(show, example_url, width):
    page = show(width, url=example_url)
    assert page.evaluate(TOUCHING) == []


def test_labels_that_touch_would_be_found(show, tmp_path):
    path = tmp_path / "bad.html"
    texts = '<text x="9" y="20">one</text><text x="12" y="20">other</text>'
    path.write_text(f"<!doctype html><title>x</title><svg>{texts}</svg>")
    assert show(360, url=path.as_uri()).evaluate(TOUCHING) == ["one and other"]


def test_decisions_and_reasons_are_on_the_first_screen(show):
    page = show(1440)
    assert page.locator(".origin").bounding_box()["y"] < 200
    for part in (".matrix", ".why"):
        box = page.locator(part).bounding_box()
        assert box["y"] + box["height"] < 900
    assert page.locator(".why h3").all_text_contents() == [
        "✓ Why ship",
        "! Why hold",
        "✕ Why block",
    ]


def test_the_width_of_a_large_screen_is_used(show):
    page = show(1440)
    assert page.locator("main").bounding_box()["width"] > 1300
    tops = [figure.bounding_box()["y"] for figure in page.locator("figure.small").all()[:3]]
    assert len(set(tops)) == 1  # three beside each other


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_axe_finds_nothing_serious(show, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = show(width, scheme)
    page.evaluate(UNFOLD)
    found = [v for v in axe.run(page).response["violations"] if v["impact"] in GRAVE]
    assert not found, [(v["id"], v["nodes"][0]["html"]) for v in found]


def test_axe_would_find_something(show, tmp_path):
    """The check is alive: an image without a text is found."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    path = tmp_path / "bad.html"
    path.write_text("<!doctype html><title>x</title><img src=''>")
    found = axe.run(show(360, url=path.as_uri())).response["violations"]
    assert "image-alt" in [violation["id"] for violation in found]


def test_every_part_is_reached_by_the_keyboard(show):
    page = show(768)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    summary = page.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None


def test_every_picture_has_a_text_and_a_table(show):
    page = show(1440)
    figures = page.locator("figure").all()
    assert figures
    for figure in figures:
        assert figure.locator("[role=img]:visible").get_attribute("aria-label")
        assert figure.locator("details table").count() == 1


def test_hostile_text_runs_nothing(show, tmp_path):
    from .reports import renamed, run

    saved = write_report(tmp_path / "x.json", renamed(run(), "<script>document.title=1</script>"))
    assert main(["report", str(saved), "--html", str(tmp_path / "x.html")]) == 0
    page = show(768, url=(tmp_path / "x.html").as_uri())
    assert page.locator("script").count() == 0
    assert page.title() != "1"
