"""A script that stands in for tritonserver, in an environment that looks like the real one."""

import contextlib
import sys

from enginegate.serving.triton.environment import ServerEnvironment

FAKE = """#!{python}
import http.server, json, os, pathlib, signal, sys
options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
behaviour = pathlib.Path(__file__).with_name("behaviour").read_text()
pathlib.Path("/dev/shm", options["id"] + "-segment").write_text("left behind")
if behaviour == "dies":
    print("E1124 06:45:41.1 7 server.cc:241] \\"CudaDriverHelper has not been initialized.\\"")
    print('E1124 06:45:41.2 7 x.cc:1] "failed to load it: no such file\\\\n\\\\nAt:\\\\n  f(1)"')
    sys.exit(1)
if behaviour == "failed to start":
    print('E1124 06:45:41.2 7 x.cc:1] "failed to load it: failed to start, GPU already in use"')
    sys.exit(1)
if behaviour == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({{"name": options["id"]}}).encode()
        self.send_response(400 if behaviour == "slow" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
try:
    server = http.server.HTTPServer((options["http-address"], int(options["http-port"])), Handler)
except OSError:
    where = "E1124 07:57:19.397717 29577 main.cc:257] "
    print(where + "\\"failed to start HTTP service: Unavailable - Socket '_' already in use \\"")
    sys.exit(1)
print("serving", flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def quiet(_task):
    yield


def stand_in(folder):
    """An environment whose tritonserver is a script; the function returned says what it does."""
    environment = ServerEnvironment(folder / "environment")
    stub = environment.backends / "python" / "triton_python_backend_stub"
    for path in (environment.binary, stub):
        path.parent.mkdir(parents=True)
        path.touch()
    (environment.packages / "numpy-1.26.4.dist-info").mkdir()
    environment.binary.write_text(FAKE.format(python=sys.executable))
    environment.binary.chmod(0o755)

    def behave(behaviour="good"):
        environment.binary.with_name("behaviour").write_text(behaviour)
        return environment

    return behave


def no_models(_repository):
    return []
