"""Parts of a page: tables and charts."""
