"""What the suite's tests ask for."""

pytest_plugins = ["enginegate.fixtures"]
