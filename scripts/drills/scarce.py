"""Runs a server where /dev/shm or the disk is nearly full: a small tmpfs, in a mount namespace of its own.

    found = run_scarce("shm", Path("repository"), megabytes=8, folder=Path("scratch"))    # None: not allowed here

Linux gives such a namespace to users too, where user namespaces are enabled; nothing outside it is touched.
The module is its own child: `python -m retinaserve.scripts.drills.scarce MODE REPOSITORY FOLDER` prints JSON.
"""

import asyncio
import io
import json
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from retinaserve.build_tools.repository.builder import build_repository
from retinaserve.build_tools.repository.versions import versions_of
from retinaserve.eval.client.transport import Endpoint
from retinaserve.scripts.drills.drill import fixture
from retinaserve.scripts.drills.load import closed_loop
from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from retinaserve.training.errors import UserError
from retinaserve.training.spec import RETINANET


def run_scarce(mode: str, repository: Path, *, megabytes: float, folder: Path) -> dict[str, Any] | None:
    """Return what the child found with `mode` "shm" or "disk"; None where there are no user namespaces."""
    scarce = folder / "scarce"
    scarce.mkdir(exist_ok=True)
    where = "/dev/shm" if mode == "shm" else str(scarce)
    mount = f"mount -t tmpfs -o size={int(megabytes * 1024)}k tmpfs {shlex.quote(where)}"
    allowed = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False)
    if allowed.returncode != 0:
        return None
    child = shlex.join(
        [sys.executable, "-m", "retinaserve.scripts.drills.scarce", mode, str(repository), str(scarce)]
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount} && exec {child}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        raise UserError(f"the drill's child ended with {done.returncode}", done.stderr.strip()[-500:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def scarce_shared_memory(repository: Path) -> dict[str, Any]:
    """Ask one by one, then many at once, so that they outgrow the shared memory, then one by one again."""
    found: dict[str, Any] = {}
    with fixture(repository, images=[_noise()]) as fix:
        for name, in_flight in (("before", 1), ("crowded", 32), ("after", 1)):
            requests = asyncio.run(closed_loop(fix.endpoint, fix.images, in_flight=in_flight, seconds=1.5))
            found[name] = dict(Counter(request.status for request in requests))
            found[f"{name}_messages"] = sorted({request.message[:160] for request in requests if request.message})
        assert fix.server
        found["alive"] = fix.server.process.poll() is None
    return found


def _noise() -> bytes:
    """Return an image that does not compress: two of it outgrow what a stub begins with, one does not."""
    pixels = np.random.default_rng(0).integers(0, 256, (420, 420, 3), np.uint8)  # 0.5 MB
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def scarce_disk(repository: Path, folder: Path) -> dict[str, Any]:
    """Build into a disk that is too small, then serve with the log on it when it is full."""
    graph = repository / RETINANET / str(versions_of(repository)[-1]) / "model.onnx"
    found: dict[str, Any] = {}
    try:
        build_repository(graph, folder / "built")
        found["build"] = "done"
    except UserError as error:
        found["build"] = error.message
    found["left_behind"] = sorted(path.name for path in folder.iterdir())
    with (folder / "filler").open("wb") as filler:
        try:
            while True:
                filler.write(bytes(65536))
                filler.flush()
        except OSError:
            pass
    image = (repository / "preprocess" / "warmup" / "picture.jpg").read_bytes()
    with TritonServer(repository, ServerOptions.free_ports(verbose=True), log=folder / "server.log") as server:
        server.wait_until_ready()
        requests = asyncio.run(closed_loop(Endpoint.parse(server.grpc_url), [image], in_flight=2, seconds=1))
    found["served"] = dict(Counter(request.status for request in requests))
    return found


if __name__ == "__main__":
    _, mode, source, target = sys.argv
    result = scarce_shared_memory(Path(source)) if mode == "shm" else scarce_disk(Path(source), Path(target))
    sys.stdout.write(json.dumps(result) + "\n")
