"""A page as one HTML file: no script, nothing loaded from elsewhere, every text escaped."""

import importlib.resources
from typing import Any

from enginegate.machine import installed_version
from enginegate.report.outlets import for_page, translated
from enginegate.report.page import Chart, Page
from enginegate.report.render.drawing import check_drawable, draw_both

DISTRIBUTION = "pytest-enginegate"
SIGNS = {"ship": "✓", "hold": "!", "block": "✕"}


def render_html(page: Page) -> str:
    """The whole file. Raises ReportError if a library is missing."""
    check_drawable()
    page = translated(page, for_page)
    drawn = _drawings(page)
    content = {"page": page, "signs": SIGNS, "version": installed_version(DISTRIBUTION)}
    return str(_template().render(drawings=lambda chart: drawn[id(chart)], **content))


def _drawings(page: Page) -> dict[int, dict[str, Any]]:
    """SVG by chart, each for the widths that it is shown in."""
    from markupsafe import Markup

    charts: list[Chart] = [chart for section in page.sections for chart in section.charts]
    return {
        id(chart): {name: Markup(svg) for name, svg in draw_both(chart, number).items()}  # noqa: S704 - Vega escapes its texts, ElementTree writes them
        for number, chart in enumerate(charts)
    }


def _template() -> Any:
    import jinja2

    files = importlib.resources.files("enginegate.report")
    loader = jinja2.FunctionLoader(lambda name: files.joinpath(name).read_text("utf-8"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2")
