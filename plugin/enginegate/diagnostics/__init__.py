"""Why it is so; never a verdict."""

from enginegate.diagnostics.layers.diagnosis import blamed, profiled
from enginegate.diagnostics.layers.repair import Repair, Step, repaired
from enginegate.diagnostics.layers.search import Blamed
from enginegate.diagnostics.roofline.ceilings import measured_device
from enginegate.diagnostics.roofline.device import ELEMENT_BYTES, Device, read_profile
from enginegate.diagnostics.roofline.flops import (
    BACKBONE,
    HEAD,
    Cost,
    Layer,
    cost_of,
    thop_flops,
    true_flops,
)
from enginegate.diagnostics.roofline.roofline import (
    Count,
    Point,
    Roofline,
    Setting,
    Traffic,
    cost_as_json,
    engine_as_json,
)

__all__ = [
    "BACKBONE", "ELEMENT_BYTES", "HEAD", "Blamed", "Cost", "Count", "Device", "Layer", "Point",
    "Repair", "Roofline", "Setting", "Step", "Traffic", "blamed", "cost_as_json", "cost_of",
    "engine_as_json", "measured_device", "profiled", "read_profile", "repaired", "thop_flops",
    "true_flops",
]  # fmt: skip
