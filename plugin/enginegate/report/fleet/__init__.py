"""Reports of several machines and shards as one verdict."""

from enginegate.report.fleet.fleet import Fleet, merged
from enginegate.report.fleet.page import compose_fleet, fleet_json

__all__ = ["Fleet", "compose_fleet", "fleet_json", "merged"]
