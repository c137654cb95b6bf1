"""Files appear whole, together, or not at all."""

import hashlib
from pathlib import Path

import pytest

from retinaserve.training.errors import UserError
from retinaserve.training.files import sha256, whole
from tests.disk import files_no_larger_than


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_appear_together_in_a_new_folder(tmp_path: Path) -> None:
    a, b = tmp_path / "new" / "a", tmp_path / "new" / "b"
    with whole(a, b) as (first, second):
        first.write_text("1")
        second.write_text("2")
        assert not a.exists() and not b.exists()
    assert (a.read_text(), b.read_text(), names(a.parent)) == ("1", "2", ["a", "b"])


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("old")
    with (
        files_no_larger_than(4096),
        pytest.raises(UserError, match=r"a could not be written: ") as caught,
        whole(a, b) as (first, second),
    ):
        first.write_text("new")
        second.write_bytes(bytes(8192))
    assert caught.value.code == 3
    assert (a.read_text(), names(tmp_path)) == ("old", ["a"])


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "a") as (partial,):
        partial.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(UserError, match="can't be read: No such file"):
        sha256(tmp_path / "b")
