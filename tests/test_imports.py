"""The folders' order: whole folders import only what stands left of them (docs/design.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("plugins", "training", "build_tools", "eval", "scripts")
FILES = [
    path.relative_to(ROOT) for folder in (*ORDER, "model_repository") for path in (ROOT / folder).rglob("*.py")
]


def imports_of(source: str) -> list[str]:
    """Return the absolute module names that a file imports, also inside functions."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return names + [f"{node.module}" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]


def wrong_imports(folder: str, source: str) -> list[str]:
    """Return a file's imports of our own that its folder may not make."""
    allowed = ORDER[: ORDER.index(folder) + 1] if folder in ORDER else ()
    ours = [
        name.split(".") for name in imports_of(source) if name.split(".")[0] in ("retinaserve", "tests", *ORDER)
    ]
    return [".".join(name) for name in ours if name[0] != "retinaserve" or (name[1:2] or [""])[0] not in allowed]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_left(path: Path) -> None:
    assert wrong_imports(path.parts[0], (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("training", "from retinaserve.build_tools.graft import graft"),
        ("training", "def late():\n    import retinaserve.eval.client"),
        ("plugins", "from retinaserve.training.spec import DetectorSpec"),
        ("model_repository", "from retinaserve.build_tools.preprocess import admit"),
        ("eval", "import retinaserve.scripts.server"),
        ("scripts", "from tests.images import encode"),
        ("scripts", "from training.spec import DetectorSpec"),
        ("build_tools", "from retinaserve import Client"),
    ],
)
def test_the_rule_notices(folder: str, line: str) -> None:
    assert wrong_imports(folder, line)


@pytest.mark.parametrize("module", ["training.spec", "eval.client.client", "eval.predictions", "scripts.cli.main"])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    heavy = "torch", "nvidia.dali", "openvino", "onnx", "matplotlib", "tritonclient"
    verbs = (
        "for verb in retinaserve.scripts.cli.main.VERBS: retinaserve.scripts.cli.main.main.get_command(None, verb)"
    )
    code = f"import sys, retinaserve.{module}\n{verbs if module.endswith('main') else ''}\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
