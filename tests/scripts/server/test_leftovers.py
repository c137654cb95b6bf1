"""Temporary folders of servers: a dead owner's go, a living one's stay."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from retinaserve.scripts.server.triton import SHARED_MEMORY, Scratch, ServerOptions, TritonServer
from retinaserve.training.errors import UserError

OWNER = """
import tempfile
from retinaserve.scripts.server.triton import Scratch
scratch = Scratch()
print(scratch.path, scratch.shared_memory, flush=True)
input()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_killed_owners_folder_goes_when_the_next_server_starts(temporary: Path) -> None:
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        path, shared_memory = owner.stdout.readline().split()
        left = SHARED_MEMORY / f"{shared_memory}x"
        left.touch()
        foreign = temporary / "retinaserve-12345678"  # somebody's with such a name
        foreign.mkdir()
        mine = Scratch()
        assert Path(path).is_dir() and left.exists() and mine.path.is_dir(), "its owner lives"
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert Path(path).is_dir()
    next_one = Scratch()
    assert not Path(path).exists() and not left.exists()
    assert mine.path.is_dir() and foreign.is_dir()
    mine.remove()
    next_one.remove()
    assert list(temporary.iterdir()) == [foreign]


@pytest.mark.server
def test_a_server_that_could_not_start_leaves_nothing(repository: Path, temporary: Path) -> None:
    options = ServerOptions.free_ports()
    with pytest.raises(UserError, match=r"log can't be written: No such file"):
        TritonServer(repository, options, log=temporary / "nowhere" / "log")
    assert list(temporary.iterdir()) == []
