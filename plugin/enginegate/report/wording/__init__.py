"""Parts of a report in words."""
