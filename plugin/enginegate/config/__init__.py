"""What was asked."""

from enginegate.config.arguments import add_options
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
from enginegate.config.settings import number

__all__ = [
    "Arrivals", "Deployment", "Driver", "Endpoint", "Options", "Protocol", "ServeOptions", "Slo",
    "add_options", "number",
]  # fmt: skip
