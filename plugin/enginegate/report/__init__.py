"""A run's JSON report to something people look at: a page of records, then HTML, Markdown, text."""

from enginegate.report.decision import decided
from enginegate.report.export import export_files
from enginegate.report.fleet import Fleet, merged
from enginegate.report.output import (
    annotations,
    append_summary,
    fleet_files,
    plot_history,
    report_files,
    run_html,
    run_markdown,
)
from enginegate.report.render.html import check_drawable
from enginegate.report.saved_run import origin_of, render_json
from enginegate.report.sweep_files import CSV_COLUMNS, read_sweeps
from enginegate.report.table import described, interrupted_line, spent_line
from enginegate.report.text import aligned, render_text, summary, wrapped
from enginegate.report.wording.roofline import (
    TRAFFIC,
    cost_line,
    device_line,
    roofline_line,
    roofline_rows,
)
from enginegate.report.wording.sweeps import (
    analysis_lines,
    compare_engines,
    marked_lines,
)

__all__ = [
    "CSV_COLUMNS", "TRAFFIC", "Fleet", "aligned", "analysis_lines", "annotations", "append_summary",
    "check_drawable", "compare_engines", "cost_line", "decided", "described", "device_line",
    "export_files", "fleet_files", "interrupted_line", "marked_lines", "merged", "origin_of",
    "plot_history", "read_sweeps", "render_json", "render_text", "report_files", "roofline_line",
    "roofline_rows", "run_html", "run_markdown", "spent_line", "summary", "wrapped",
]  # fmt: skip
