"""A page as one HTML file: no script, nothing loaded from elsewhere, every text escaped.

Its charts are drawn by vl-convert, imported here only, as SVG that holds in both themes.
"""

import importlib.resources
import json
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from enginegate.errors import ReportError
from enginegate.files import for_page, translated
from enginegate.machine import installed_version
from enginegate.report.page import Chart, Page
from enginegate.report.saved_run import DISTRIBUTION
from enginegate.report.sections.vega import SLIM, WIDE

_SVG = "http://www.w3.org/2000/svg"
_ARIA = "aria-label"
_CONFIG: Mapping[str, Any] = {
    "aria": True,
    "background": None,
    "font": "system-ui, sans-serif",
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        "domainColor": "var(--line)",
        "gridColor": "var(--grid)",
        "labelColor": "var(--soft)",
        "labelFlush": False,
        "labelFontSize": 12,
        "labelOverlap": "greedy",
        "labelPadding": 5,
        "labelSeparation": 10,
        "tickColor": "var(--line)",
        "titleColor": "var(--soft)",
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "legend": {
        "labelColor": "var(--ink)",
        "labelFontSize": 12,
        "orient": "top",
        "symbolOpacity": 1,
        "symbolSize": 90,
        "title": None,
    },
    "text": {"color": "var(--ink)", "fontSize": 12},
    "rule": {"color": "var(--soft)"},
}
SIGNS = {"ship": "✓", "ship (new)": "✓", "hold": "!", "block": "✕"}


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


def check_drawable() -> None:
    """Raise ReportError unless the libraries that draw a page are installed."""
    try:
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ModuleNotFoundError as error:
        raise ReportError(
            f"the HTML report needs {error.name}: pip install 'pytest-enginegate[report]'"
        ) from error


def draw(chart: Chart, width: int, mark: str) -> str:
    """The chart as an SVG element `width` pixels wide. `mark` makes its ids unique on the page.

    Raises ReportError where it cannot be drawn.
    """
    import vl_convert

    size = {"width": width, "height": chart.height}
    fit = {"type": "fit", "contains": "padding"}
    spec = {**chart.spec, **size, "autosize": fit, "config": _CONFIG}
    try:
        svg = vl_convert.vegalite_to_svg(_without_nan(spec), allowed_base_urls=[])
    except ValueError as error:
        raise ReportError(f"cannot draw {chart.title!r}: {error}") from error
    return _tidy(ElementTree.fromstring(svg), mark)  # noqa: S314 - of our own making


def _without_nan(spec: Mapping[str, Any]) -> Any:
    """Numbers that are not known as null, which Vega leaves out."""
    return json.loads(json.dumps(spec), parse_constant=lambda _: None)


def _tidy(root: ElementTree.Element, mark: str) -> str:
    """Unique ids, a tooltip for every described point, one text for all of the picture."""
    ElementTree.register_namespace("", _SVG)
    for element in root.iter():
        _rename(element, mark)
        if element.get("role") == "graphics-symbol" and (said := element.get(_ARIA)):
            title = ElementTree.SubElement(element, f"{{{_SVG}}}title")
            title.text = said
        for name in [name for name in element.attrib if name.startswith("aria") or name == "role"]:
            del element.attrib[name]
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    return ElementTree.tostring(root, encoding="unicode")


def _rename(element: ElementTree.Element, mark: str) -> None:
    """Clip paths are named alike in every SVG; on one page the first would serve all."""
    for name, value in list(element.attrib.items()):
        if name == "id":
            element.set(name, f"{mark}-{value}")
        elif value.startswith("url(#"):
            element.set(name, value.replace("url(#", f"url(#{mark}-"))


def draw_both(chart: Chart, number: int) -> dict[str, str]:
    """The chart for a wide page and for a phone; a small one is the same on both."""
    widths = {"slim": SLIM} if chart.small else {"wide": WIDE, "slim": SLIM}
    return {name: draw(chart, width, f"c{number}{name}") for name, width in widths.items()}
