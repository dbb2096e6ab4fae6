"""The parts of a run on the machines of a Ray cluster, and one verdict of what they report."""

from enginegate.session.fleet.driver import run_fleet

__all__ = ["run_fleet"]
