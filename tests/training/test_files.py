"""Files appear whole, together, or not at all."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from retinaserve.training.errors import UserError
from retinaserve.training.files import sha256, whole, write_json, write_text
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


@pytest.mark.parametrize("before", [None, "old"])
def test_ctrl_c_leaves_what_was_there(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "a"
    if before:
        path.write_text(before)
    with pytest.raises(KeyboardInterrupt), whole(path) as (partial,):
        partial.write_text("half")
        raise KeyboardInterrupt
    assert [file.read_text() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, reason in ((tmp_path / "file" / "a.txt", "Not a directory|File exists"), (tmp_path, "")):
        with pytest.raises(UserError, match=rf"{path.name} could not be written: ({reason})"):
            write_text(path, "")


def test_a_link_stays_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link, file = tmp_path / "link", tmp_path / "folder" / "file"
    link.symlink_to(file)
    write_text(link, "text")
    assert link.is_symlink() and file.read_text() == "text"
    reader, writer = os.pipe()
    write_text(Path(f"/dev/fd/{writer}"), "text")
    assert os.read(reader, 9) == b"text"


def test_json_has_a_row_of_numbers_on_a_line(tmp_path: Path) -> None:
    values = {"rows": [[1, 2.5], [], [None, -3e-9]], "text": ["[\n1,\n2\n]"], "name": "a [ 1 ]"}
    write_json(tmp_path / "a.json", values)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == values
    assert "    [1, 2.5],\n" in text and "[null, -3e-09]" in text


def test_json_is_indented_as_the_library_does_it(tmp_path: Path) -> None:
    values = {"a": {"b": ["x", {"c": "d", 3: None}], "e": {}}, "é\n": [{"f": True}, ["g", {}]], "n": "1"}
    write_json(tmp_path / "a.json", values)
    assert (tmp_path / "a.json").read_text() == json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    write_json(tmp_path / "a.json", ["x"], indent=None)
    assert (tmp_path / "a.json").read_text() == '["x"]\n'


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(UserError, match="can't be read: No such file"):
        sha256(tmp_path / "b")
