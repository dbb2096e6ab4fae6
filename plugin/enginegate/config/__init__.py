"""What was asked."""

from enginegate.config.arguments import add_options, add_precision, join_values
from enginegate.config.fleet import FleetOptions
from enginegate.config.options import Options
from enginegate.config.serving import (
    Arrivals,
    Deployment,
    Driver,
    Endpoint,
    Protocol,
    ServeOptions,
    Slo,
)
from enginegate.config.settings import number, opted_in
from enginegate.config.shard import Shard

__all__ = [
    "Arrivals", "Deployment", "Driver", "Endpoint", "FleetOptions", "Options", "Protocol",
    "ServeOptions", "Shard", "Slo", "add_options", "add_precision", "join_values", "number",
    "opted_in",
]  # fmt: skip
