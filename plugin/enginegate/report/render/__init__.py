"""From a page to HTML, Markdown and text."""
