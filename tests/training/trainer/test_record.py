import json
import subprocess
from pathlib import Path

from retinaserve.training.trainer.record import environment, git_commit


def test_the_environment_says_what_ran() -> None:
    found = environment()
    assert found["cpu"]["cores"] >= 1 and found["cpu"]["model"] and found["processes"] == 1
    assert json.loads(json.dumps(found)) == found


def test_the_commit_is_gits(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("a")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert git_commit(tmp_path) == {"commit": commit, "changed": False}
    (tmp_path / "file").write_text("b")
    assert git_commit(tmp_path) == {"commit": commit, "changed": True}
