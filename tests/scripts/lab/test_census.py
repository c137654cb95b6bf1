"""The census of a small tree, by hand."""

import ast
from pathlib import Path

import pytest

from retinaserve.scripts.lab.census import census, cycles, import_graph

TREE = {
    "training/__init__.py": '"""No module: it has no code."""\n',
    "training/spec.py": "import click\n\nNAME = 1\n",
    "training/loaders.py": "def load():\n    from {0}training import dali_loader\n",
    "training/dali_loader.py": "import {0}training.loaders\n",
    "scripts/cli/main.py": "import click\n",
    "plugins/kernels/nms.cu": "a\nb\n",
    "tests/test_spec.py": "assert True\n",
    "docs/page.md": "four words on it\n",
}


@pytest.mark.parametrize("package", ["", "retinaserve."], ids=["before", "in the package"])
def test_a_tree(tmp_path: Path, package: str) -> None:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.format(package))
    (tmp_path / "src" / "retinaserve").mkdir(parents=True)
    (tmp_path / "src" / "retinaserve" / "training").symlink_to(tmp_path / "training")
    found = census(tmp_path)
    assert found.totals == (4, 7) and found.modules["training"] == 3 and found.modules["src"] == 0
    assert (found.cuda_lines, found.test_modules, found.test_lines, found.docs_words) == (2, 1, 1, 4)
    assert found.click_outside_cli == ["training/spec.py"]
    assert found.cycles == [["training.dali_loader", "training.loaders"]]
    assert found.widest_folder == ("training", 3) and next(iter(found.largest)) == "training/spec.py"


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({}, []),
        ({"a": "import b", "b": "import c", "c": ""}, []),
        ({"a": "import b", "b": "import c", "c": "import a"}, [["a", "b", "c"]]),
        ({"a": "if TYPE_CHECKING:\n    import b", "b": "import a"}, []),
        ({"a.b": "from a import c", "a.c": "def f():\n    from a.b import x"}, [["a.b", "a.c"]]),
    ],
)
def test_cycles(sources: dict[str, str], expected: list[list[str]]) -> None:
    assert cycles(import_graph({name: ast.parse(text) for name, text in sources.items()})) == expected
