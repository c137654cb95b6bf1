"""The tritonserver of the nvidia-pytriton wheel on python models, for the findings about it.

with triton({"echo": (CONFIG, CODE)}) as (url, process): client = tritonclient.grpc.InferenceServerClient(url)
"""

import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import tritonclient.http as http

IMPORTS = "import time\nimport numpy as np\nimport triton_python_backend_utils as pb_utils\n\n\n"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def triton(models: dict[str, tuple[str, str]], *flags: str) -> Iterator[SimpleNamespace]:
    """Serve models of {name: (config.pbtxt, body of execute(self, requests))}; yield addresses and the process.

    Without a body the config is all there is: an ensemble's. `flags` are the server's own.
    """
    site = Path(sysconfig.get_path("purelib"))
    root = site / "pytriton" / "tritonserver"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        backend = folder / "backends" / "python"
        backend.mkdir(parents=True)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
        for source in (*(root / "backends" / "python").iterdir(), stub):
            (backend / source.name).symlink_to(source)
        for name, (config, body) in models.items():
            code = folder / "models" / name / "1" / "model.py"
            code.parent.mkdir(parents=True)
            code.write_text(f"{IMPORTS}class TritonPythonModel:\n    def execute(self, requests):\n{body}")
            backend_line = 'backend: "python"\n' if body else ""
            (code.parents[1] / "config.pbtxt").write_text(backend_line + config)
        ports = dict(zip(("http", "grpc", "metrics"), _free_ports(3), strict=True))
        addresses = [f"--{kind}-address=127.0.0.1" for kind in ports]
        command = [str(root / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}", *addresses]
        command += [
            f"--backend-directory={backend.parent}",
            *flags,
            *(f"--{kind}-port={port}" for kind, port in ports.items()),
        ]
        libraries = f"{site / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
        path = f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "PATH": path}
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        urls = {kind: f"127.0.0.1:{port}" for kind, port in ports.items()}
        try:
            _wait(urls["http"], process, folder / "log")
            yield SimpleNamespace(**urls, process=process)
        finally:
            process.terminate()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    client = http.InferenceServerClient(url)
    for _ in range(240):
        try:
            if client.is_server_ready():
                client.close()
                return
        except OSError:
            if process.poll() is not None:
                sys.exit(f"tritonserver ended: {log.read_text()[-2000:]}")
        time.sleep(0.5)
    sys.exit(f"tritonserver was not ready in two minutes: {log.read_text()[-2000:]}")
