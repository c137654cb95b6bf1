"""Where a drill happens: a copy of the repository, pictures, and a server of its own on free ports.

    with stage(Path("repository"), reload=True) as scene:
        scene.endpoint, scene.pictures, scene.usage()

The user's repository is only read. Drills that break the server start it themselves, from `scene.start()`.
"""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from retinaserve.build_tools.repository.configs import read_config
from retinaserve.eval.client.transport import Endpoint
from retinaserve.scripts.drills.processes import Usage, usage
from retinaserve.scripts.server.triton import ServerOptions, TritonServer, check_repository, with_ports
from retinaserve.training.spec import PREPROCESS

PICTURES = 12


@dataclass
class Scene:
    """A scratch folder with the repository's copy, and the server when it runs."""

    folder: Path
    options: ServerOptions
    pictures: list[bytes]
    server: TritonServer | None = field(default=None)

    @property
    def repository(self) -> Path:
        """The copy, which may be changed."""
        return self.folder / "repository"

    @property
    def endpoint(self) -> Endpoint:
        """The server's gRPC."""
        return Endpoint("grpc", "127.0.0.1", self.options.grpc_port)

    @property
    def http(self) -> Endpoint:
        """The server's HTTP."""
        return Endpoint("http", "127.0.0.1", self.options.http_port)

    @property
    def queue(self) -> int:
        """How many requests wait at most: a closed loop of as many is refused none."""
        config = read_config(self.repository / PREPROCESS / "config.pbtxt")
        return int(config.dynamic_batching.default_queue_policy.max_queue_size)

    def start(self) -> TritonServer:
        """Start a server, on the same ports each time."""
        self.server = TritonServer(self.repository, self.options, log=self.folder / "tritonserver.log")
        return self.server

    def usage(self) -> Usage:
        """Look at the running server's processes."""
        assert self.server
        return usage(self.server.process.pid, self.server.shared_memory)


@contextmanager
def stage(
    repository: Path, *, pictures: list[bytes] | None = None, reload: bool = False, start: bool = True
) -> Iterator[Scene]:
    """Copy the repository and give the scene, with a server that is ready unless `start` is false."""
    check_repository(repository)
    with tempfile.TemporaryDirectory(prefix="retinaserve-drill-") as scratch:
        shutil.copytree(repository, Path(scratch) / "repository")
        options = with_ports(ServerOptions.free_ports(reload=reload, admin_token=secrets.token_hex()))
        scene = Scene(Path(scratch), options, pictures or drawn(Path(scratch)))
        if not start:
            yield scene
            return
        with scene.start() as server:
            server.wait_until_ready()
            yield scene


def drawn(folder: Path) -> list[bytes]:
    """Draw pictures where the user gave none."""
    from retinaserve.scripts.shapes.draw import draw_dataset

    draw_dataset(folder / "pictures", images=PICTURES, seed=0)
    return [path.read_bytes() for path in sorted((folder / "pictures" / "images").iterdir())]
