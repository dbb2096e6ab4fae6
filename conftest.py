"""This project's own choices beyond pyproject.toml's `[tool.enginegate]`: none so far."""
