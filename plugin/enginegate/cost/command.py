"""`enginegate roofline`: a model on a device, on paper, or on this machine's own ceilings."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from enginegate.cost.ceilings import measured_device
from enginegate.cost.device import ELEMENT_BYTES, Device, read_profile
from enginegate.cost.flops import cost_of
from enginegate.cost.roofline import Roofline, Setting, Traffic
from enginegate.cost.text import TRAFFIC, cost_line, device_line, roofline_rows
from enginegate.engines import get_backend, resolve
from enginegate.errors import OptionError
from enginegate.options import default_cache
from enginegate.render import aligned
from enginegate.store import Store

_BATCHES = "1,8,32,128"


def add_roofline(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    command = commands.add_parser("roofline", help="what a model costs and a device allows")
    add = command.add_argument
    add("model", type=Path, help="an ONNX file; its axes 0 and 1 are batch and sequence")
    add("--device-profile", type=Path, metavar="FILE", help="JSON or TOML; default: this machine")
    add("--precision", default="", help="comma-separated; default: all that the device has")
    add("--batches", default=_BATCHES, help=f"default: {_BATCHES}")
    add("--seq-len", type=int, default=32, metavar="N", help="tokens of a text (default 32)")
    add("--output", default="", help="the output that is the embedding (default: the first)")
    add("--traffic", choices=list(Traffic), default=Traffic.FUSED, help="default: fused")
    add("--threads", type=int, default=1, metavar="N", help="of this machine (default 1)")
    command.set_defaults(run=roofline_lines)


def roofline_lines(given: argparse.Namespace) -> Iterator[str]:
    """What the command prints. Raises OptionError, ModelError or EngineError."""
    batches = _counts(given.batches)
    cost = cost_of(given.model, given.output)
    yield cost_line(given.model.name, cost, _positive("seq-len", given.seq_len))
    device = read_profile(given.device_profile) if given.device_profile else _here(given)
    yield device_line(device)
    traffic = Traffic(given.traffic)
    yield f"traffic: {TRAFFIC[traffic]}; elements of {_sizes(device)} bytes"
    header = ("", "part", "limited", "ridge", *(f"batch {batch}" for batch in batches))
    rows = [header]
    for precision in _wanted(given.precision) or device.peaks_per_s:
        size = ELEMENT_BYTES[precision]
        device.peak_per_s(precision)
        setting = Setting(device, precision, size, traffic, given.seq_len)
        rows += roofline_rows(Roofline(cost, setting), batches)
    yield from aligned(rows)


def _here(given: argparse.Namespace) -> Device:
    """This machine, in what its default backend builds itself."""
    name, _ = resolve("auto")
    backend = get_backend(name)
    built = [p for p in backend.offers if backend.stand_in(p) is None]
    wanted = _wanted(given.precision) or built
    engines = {str(p): (name, p) for p in built if p in wanted}
    return measured_device(Store(default_cache()), engines, _positive("threads", given.threads))


def _wanted(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if unknown := [word for word in words if word not in ELEMENT_BYTES]:
        raise OptionError(f"--precision {unknown} is none of {', '.join(ELEMENT_BYTES)}")
    return words


def _sizes(device: Device) -> str:
    return ", ".join(f"{ELEMENT_BYTES[name]} ({name})" for name in device.peaks_per_s)


def _counts(text: str) -> Sequence[int]:
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise OptionError(f"--batches {text!r} is not a list of whole numbers such as {_BATCHES}")
    return [_positive("batches", int(word)) for word in words]


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise OptionError(f"--{name} {value} is not 1 or more")
    return value
