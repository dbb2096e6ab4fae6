"""A run's JSON report to something people look at: a page of records, then HTML, Markdown, text."""
