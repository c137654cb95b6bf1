"""What a server's processes hold: memory, file descriptors, processor time, and shared memory; Linux's /proc.

    usage(pid, "retinaserve_")      # Usage(processes={"tritonserver": ..., "preprocess 1": ...}, shared_bytes=...)

Memory is PSS (proportional set size): pages that processes share are counted once, in parts. So a library's pages
weigh less as soon as another program on the machine uses it, and more when that ends, by tens of megabytes. What a
process itself took and filled is its `own_bytes`, and no neighbour changes it.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """One process of the server; `name` is tritonserver, or the model and version of a python-backend stub."""

    pid: int
    name: str
    memory_bytes: int
    own_bytes: int  # without the pages of files
    descriptors: int
    cpu_seconds: float


@dataclass(frozen=True)
class Usage:
    """All processes of a server by name, and the files it holds in /dev/shm."""

    processes: dict[str, Process]
    shared_bytes: int
    shared_files: int

    @property
    def memory_bytes(self) -> int:
        """Of all processes together."""
        return sum(process.memory_bytes for process in self.processes.values())


def usage(server: int, prefix: str) -> Usage:
    """Look at the server with this process id, whose shared memory is called `prefix`... ."""
    processes = {process.name: process for process in _group(server)}
    sizes = []
    for file in SHARED_MEMORY.glob(f"{prefix}*"):
        with suppress(FileNotFoundError):
            sizes.append(file.stat().st_blocks * 512)  # what it takes; its length is only what it may
    return Usage(processes, sum(sizes), len(sizes))


def stubs(server: int) -> dict[str, int]:
    """Return the python-backend processes of a server: process id by name, which begins with the model's."""
    found = {process.name: process.pid for process in _group(server)}
    return {name: pid for name, pid in found.items() if name != "tritonserver"}


def _group(group: int) -> Iterator[Process]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) != group or fields[0] == "Z":
                continue
            words = (folder / "cmdline").read_bytes().split(b"\0")
            memory = _memory(folder)
            yield Process(
                pid=int(folder.name),
                name=_name(words),
                memory_bytes=memory["Pss"],
                own_bytes=memory["Pss_Anon"] + memory["Pss_Shmem"],
                descriptors=len(list((folder / "fd").iterdir())),
                cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
            )


def _name(words: list[bytes]) -> str:
    """A stub's first argument is REPOSITORY/model/version/model.py, its last but one model_group_instance."""
    if not words[0].endswith(b"triton_python_backend_stub"):
        return Path(words[0].decode()).name
    path = Path(words[1].decode())
    model, version = path.parts[-3], path.parts[-2]
    instance = next((word for word in words[2:] if word.startswith(f"{model}_".encode())), b"0")
    number = int(instance.rsplit(b"_", 1)[-1])
    return f"{model} {version}" + (f" ({number + 1})" if number else "")


def _memory(folder: Path) -> Counter[str]:
    """Return the bytes of each kind: Pss, Pss_Anon (taken), Pss_Shmem (shared), Pss_File (libraries) and more."""
    lines = (folder / "smaps_rollup").read_text().splitlines()[1:]
    return Counter({kind.rstrip(":"): int(number) * 1024 for kind, number, _ in map(str.split, lines)})
