"""Serving on a real Triton: its environment, the repository, the server, and what a client asks."""

from enginegate.serving.analysis.cliffs import analyse
from enginegate.serving.measure import LoadRun, served_rig
from enginegate.serving.records import (
    Analysis,
    Breakdown,
    Capacity,
    Cliff,
    Latency,
    Level,
    Load,
    OpenLevel,
    StoredLoad,
)
from enginegate.serving.served import EngineServer, ServedEngine, ToServe
from enginegate.serving.triton.supervisor import clean

__all__ = [
    "Analysis", "Breakdown", "Capacity", "Cliff", "EngineServer", "Latency", "Level", "Load",
    "LoadRun", "OpenLevel", "ServedEngine", "StoredLoad", "ToServe", "analyse", "clean",
    "served_rig",
]  # fmt: skip
