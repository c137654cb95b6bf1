"""The census of a small tree, by hand."""

import ast
from pathlib import Path

import pytest

from retinaserve.scripts.lab.census import census, cycle, import_graph

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
    assert found["Python of the product"] == "4 modules, 7 lines" and found["src"] == "0 modules, 0 lines"
    assert found["training"] == "3 modules, 6 lines" and found["tests"] == "1 modules, 1 lines"
    assert found["lines of C++ and CUDA"] == 2 and found["words of README, CONTRIBUTING, docs"] == 4
    assert found["click outside scripts/cli"] == "training/spec.py"
    assert found["an import cycle"] == "training.dali_loader, training.loaders"
    assert found["most modules in a folder"] == "3 in training"
    assert found["largest"].startswith("training/spec.py 3")


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({}, []),
        ({"a": "import b", "b": "import c", "c": ""}, []),
        ({"a": "import b", "b": "import c", "c": "import a"}, ["a", "b", "c"]),
        ({"a": "if TYPE_CHECKING:\n    import b", "b": "import a"}, []),
        ({"a.b": "from a import c", "a.c": "def f():\n    from a.b import x"}, ["a.b", "a.c"]),
    ],
)
def test_a_cycle(sources: dict[str, str], expected: list[str]) -> None:
    assert cycle(import_graph({name: ast.parse(text) for name, text in sources.items()})) == expected
