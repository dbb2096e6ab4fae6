"""What was asked."""

from enginegate.config.arguments import add_options, add_precision, join_values
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

__all__ = [
    "Arrivals", "Deployment", "Driver", "Endpoint", "Options", "Protocol", "ServeOptions", "Slo",
    "add_options", "add_precision", "join_values", "number", "opted_in",
]  # fmt: skip
