"""The costs of a run's models and the rooflines of its engines, for its reports."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from enginegate.build import Built
