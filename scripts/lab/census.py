"""How large the project is: modules, lines, words, click's imports and import cycles, of the trees given.

    python -m retinaserve.scripts.lab.census . --json census.json
    python -m retinaserve.scripts.lab.census BEFORE AFTER       # two checkouts side by side

The folders are the same in every commit; their modules are `retinaserve.training` today, and were `training`.
"""

import argparse
import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from retinaserve.scripts.lab import run
from retinaserve.training.files import write_json

FOLDERS = ("plugins", "training", "build_tools", "eval", "scripts", "model_repository", "src", "examples")
NAME = "retinaserve"
CUDA = (".cu", ".cuh", ".cpp", ".h")
LAB = ("scripts", "lab")


def census(root: Path) -> dict[str, Any]:
    """Count a tree; links are not followed, so that a folder linked elsewhere counts once.

    A module of only a docstring is none, and a table's bars are no words.
    """
    sizes: dict[Path, int] = {}  # lines of the product's modules
    trees: dict[str, ast.Module] = {}
    found: dict[str, Any] = {}
    clicking = []
    for folder in FOLDERS:
        for path in _files(root / folder, (".py",)):
            if tree := _code(path):
                name = path.relative_to(root)
                sizes[name] = _lines(path)
                # A folder's Triton models are programs of their own.
                trees |= {_module(name): tree} if "model_repository" not in name.parts else {}
                uses_click = any(base.split(".")[0] == "click" for base, _ in _imports(tree))
                clicking += [str(name)] if uses_click and name.parts[:2] != ("scripts", "cli") else []
        found[folder] = _of([size for name, size in sizes.items() if name.parts[0] == folder])
    beside = Counter(str(name.parent) for name in sizes if name.stem != "__init__")
    tests = [path for path in _files(root / "tests", (".py",)) if _code(path)]
    pages = [root / "README.md", root / "CONTRIBUTING.md", root / "plugins" / "README.md"]
    words = [page.read_text().split() for page in [*pages, *_files(root / "docs", (".md",))] if page.is_file()]
    return found | {
        "Python of the product": _of([*sizes.values()]),
        "of it scripts/lab, not installed": _of([sizes[name] for name in sizes if name.parts[:2] == LAB]),
        "lines of C++ and CUDA": sum(map(_lines, _files(root / "plugins", CUDA))),
        "tests": _of([*map(_lines, tests)]),
        "lines of C++ and CUDA in tests": sum(map(_lines, _files(root / "tests", CUDA))),
        "words of README, CONTRIBUTING, docs": sum(any(map(str.isalnum, word)) for page in words for word in page),
        "most modules in a folder": "{1} in {0}".format(*max(beside.items(), key=lambda item: item[1])),
        "click outside scripts/cli": ", ".join(clicking) or "none",
        "an import cycle": ", ".join(cycle(import_graph(trees))) or "none",
        "largest": ", ".join(f"{name} {sizes[name]}" for name in sorted(sizes, key=lambda each: -sizes[each])[:3]),
    }


def _of(sizes: Sequence[int]) -> str:
    return f"{len(sizes)} modules, {sum(sizes)} lines"


def import_graph(modules: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Return which of the modules each imports, anywhere in it but for type checking.

    `from package import name` imports the module `package.name` where that is one, the package otherwise.
    """
    graph: dict[str, set[str]] = {}
    for name, tree in modules.items():
        wanted = {f"{base}.{part}" if f"{base}.{part}" in modules else base for base, part in _imports(tree)}
        graph[name] = {each for each in wanted if each in modules and each != name}
    return graph


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle, directly or not; none where there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return sorted(set(error.args[1]))
    return []


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield what a module imports as (module, name in it), also inside functions, not under TYPE_CHECKING."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            nodes += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name.removeprefix(f"{NAME}."), "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module.removeprefix(f"{NAME}."), alias.name) for alias in node.names)
        nodes += ast.iter_child_nodes(node)


def _module(path: Path) -> str:
    """Return a module's name without the package: `training.spec`; that of the package itself is its own."""
    parts = [part for part in path.with_suffix("").parts if part not in ("src", NAME, "__init__")]
    return ".".join(parts) or NAME


def _code(path: Path) -> ast.Module | None:
    """Parse a file; None for one without code, of a docstring at most."""
    tree = ast.parse(path.read_text())
    return tree if len(tree.body) > 1 or (tree.body and not isinstance(tree.body[0], ast.Expr)) else None


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files below a folder, without following links."""
    found = [path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file()]
    return sorted(path for path in found if not any(each.is_symlink() for each in (path, *path.parents)))


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def main() -> None:
    """Print the counts of one tree, or of several side by side."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("trees", type=Path, nargs="+", help="Checkouts of the project.")
    parser.add_argument("--json", type=Path, help="Also write everything to this file.")
    given = parser.parse_args()
    counted = [census(tree) for tree in given.trees]
    names = [tree.resolve().name for tree in given.trees]
    print(f"| | {' | '.join(names)} |")
    print("|---|" + "---|" * len(counted))
    for what in counted[0]:
        print(f"| {what} | {' | '.join(str(found[what]) for found in counted)} |")
    if given.json:
        write_json(given.json, dict(zip(names, counted, strict=True)))


if __name__ == "__main__":
    run(main)
