"""The folders' order: imports only ever point left (docs/design.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("training", "plugins", "build_tools", "model_repository", "eval", "scripts")
CONTRACT = ("training.spec", "training.errors", "training.anchors", "training.next_step")
ALLOWED = {
    "training": ("training",),
    "plugins": ("plugins",),
    "build_tools": ("build_tools", "plugins.reference", "model_repository", *CONTRACT),
    "model_repository": (),
    "eval": ("eval", *CONTRACT),
    "scripts": FOLDERS,
}
# Entry points and the offline detectors join what lies left of them; nothing imports them back.
JOINTS = {
    "build_tools/export.py": ("training",),
    "eval/detectors.py": ("training", "build_tools.preprocess"),
    "eval/engine_detector.py": ("build_tools.manifest",),  # what `export` writes beside a plan
}
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imports_of(source: str) -> list[str]:
    """Return the absolute module names a file imports, also inside functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def wrong_imports(folder: str, file: str, source: str) -> list[str]:
    """Return a file's imports of our own that its folder may not make."""
    allowed = (*ALLOWED[folder], *JOINTS.get(file, ()))
    ours = [name for name in imports_of(source) if name.split(".")[0] in (*FOLDERS, "tests")]
    return [name for name in ours if not any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path: Path) -> None:
    file = str(path.relative_to(ROOT))
    assert wrong_imports(file.split("/")[0], file, path.read_text()) == []


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("training", "from build_tools.graft import graft"),
        ("training", "def late():\n    import eval.client"),
        ("plugins", "from training.spec import DetectorSpec"),
        ("build_tools", "from training.model import RetinaNet"),
        ("build_tools", "from training import model"),
        ("model_repository", "from build_tools.preprocess import admit"),
        ("eval", "import scripts.triton"),
        ("scripts", "from tests.pictures import encode"),
    ],
)
def test_the_rule_notices(folder: str, line: str) -> None:
    assert wrong_imports(folder, f"{folder}/x.py", line)


@pytest.mark.parametrize("module", ["training.spec", "eval.detections", "scripts.cli"])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    heavy = "torch", "nvidia.dali", "openvino", "onnx", "matplotlib", "tritonclient"
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
