import json
from pathlib import Path

import pytest

from retinaserve.scripts.cli.output import write_json
from retinaserve.training.errors import UserError
from retinaserve.training.replacing import replacing


def test_a_file_appears_whole_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as partial:
        partial.write_text("all")
        assert not path.exists()
    assert path.read_text() == "all" and list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.txt can't be written"), replacing(tmp_path / "file" / "a.txt"):
        pass


def test_json_has_a_row_of_numbers_on_a_line(tmp_path: Path) -> None:
    values = {"rows": [[1, 2.5], [], [None, -3e-9]], "text": ["[\n1,\n2\n]"], "name": "a [ 1 ]"}
    write_json(tmp_path / "a.json", values)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == values
    assert "    [1, 2.5],\n" in text and "[null, -3e-09]" in text
