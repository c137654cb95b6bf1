"""How large the project is: modules, lines, words, click's imports and import cycles, of the trees given.

    python -m retinaserve.scripts.lab.census . --json census.json
    python -m retinaserve.scripts.lab.census BEFORE AFTER       # two checkouts side by side

The folders are the same in every commit; their modules are `retinaserve.training` today, and were `training`.
"""

import argparse
import ast
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from retinaserve.scripts.lab import run
from retinaserve.training.files import write_json

FOLDERS = ("plugins", "training", "build_tools", "eval", "scripts", "model_repository", "src", "examples")
NAME = "retinaserve"
CUDA = (".cu", ".cuh", ".cpp", ".h")
LARGEST = 10


@dataclass
class Census:
    """What was counted in one tree."""

    modules: dict[str, int] = field(default_factory=dict)  # by folder; one of only a docstring is none
    lines: dict[str, int] = field(default_factory=dict)
    lab: tuple[int, int] = (0, 0)  # modules and lines of them in scripts/lab, which is not installed
    widest_folder: tuple[str, int] = ("", 0)  # the most modules side by side
    cuda_lines: int = 0  # C++ and CUDA of plugins/
    test_cuda_lines: int = 0
    test_modules: int = 0
    test_lines: int = 0
    docs_words: int = 0  # README.md, CONTRIBUTING.md, docs/ and plugins/README.md; a table's bars are no words
    click_outside_cli: list[str] = field(default_factory=list)
    cycles: list[list[str]] = field(default_factory=list)  # imports inside functions count
    largest: dict[str, int] = field(default_factory=dict)

    @property
    def totals(self) -> tuple[int, int]:
        """Modules and lines of the product's Python."""
        return sum(self.modules.values()), sum(self.lines.values())


def census(root: Path) -> Census:
    """Count a tree; links are not followed, so that a folder linked elsewhere counts once."""
    found, sizes, side_by_side = Census(), dict[str, int](), dict[str, int]()
    modules: dict[str, ast.Module] = {}
    for folder in FOLDERS:
        trees = {path: tree for path in _files(root / folder, (".py",)) if (tree := _code(path))}
        found.modules[folder] = len(trees)
        found.lines[folder] = sum(map(_lines, trees))
        for path, tree in trees.items():
            name = path.relative_to(root)
            modules[_module(name)] = tree
            sizes[str(name)] = _lines(path)
            side_by_side[str(name.parent)] = side_by_side.get(str(name.parent), 0) + (path.stem != "__init__")
            uses_click = any(base.split(".")[0] == "click" for base, _ in _imports(tree))
            if uses_click and name.parts[:2] != ("scripts", "cli"):
                found.click_outside_cli.append(str(name))
    # A folder's Triton models are programs of their own.
    graph = import_graph({name: tree for name, tree in modules.items() if "model_repository" not in name})
    found.cycles = cycles(graph)
    found.widest_folder = max(side_by_side.items(), key=lambda item: item[1], default=("", 0))
    of_lab = [size for name, size in sizes.items() if name.startswith("scripts/lab/")]
    found.lab = len(of_lab), sum(of_lab)
    found.largest = dict(sorted(sizes.items(), key=lambda item: -item[1])[:LARGEST])
    found.cuda_lines = sum(map(_lines, _files(root / "plugins", CUDA)))
    tests = [path for path in _files(root / "tests", (".py",)) if _code(path)]
    found.test_modules, found.test_lines = len(tests), sum(map(_lines, tests))
    found.test_cuda_lines = sum(map(_lines, _files(root / "tests", CUDA)))
    pages = [root / "README.md", root / "CONTRIBUTING.md", root / "plugins" / "README.md"]
    pages += _files(root / "docs", (".md",))
    words = [page.read_text().split() for page in pages if page.is_file()]
    found.docs_words = sum(any(map(str.isalnum, word)) for page in words for word in page)
    return found


def import_graph(modules: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Return which of the modules each imports, anywhere in it but for type checking.

    `from package import name` imports the module `package.name` where that is one, the package otherwise.
    """
    graph: dict[str, set[str]] = {}
    for name, tree in modules.items():
        wanted = {f"{base}.{part}" if f"{base}.{part}" in modules else base for base, part in _imports(tree)}
        graph[name] = {each for each in wanted if each in modules and each != name}
    return graph


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or not: Tarjan's strong components."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in order:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == order[name]:
            start = stack.index(name)
            group, stack[start:] = stack[start:], []
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return found


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


def rows(found: Census) -> Iterator[tuple[str, str]]:
    """Yield the table's lines: what, and how much."""
    for folder in FOLDERS:
        yield folder, f"{found.modules[folder]} modules, {found.lines[folder]} lines"
    modules, lines = found.totals
    yield "Python of the product", f"{modules} modules, {lines} lines"
    yield "of it scripts/lab, which is not installed", f"{found.lab[0]} modules, {found.lab[1]} lines"
    yield "C++ and CUDA of the product", f"{found.cuda_lines} lines"
    yield (
        "tests",
        f"{found.test_modules} modules, {found.test_lines} lines, {found.test_cuda_lines} of C++ and CUDA",
    )
    yield "README, CONTRIBUTING, docs", f"{found.docs_words} words"
    yield "most modules in a folder", f"{found.widest_folder[1]} in {found.widest_folder[0]}"
    yield "click outside scripts/cli", f"{len(found.click_outside_cli)} modules"
    yield "import cycles", "; ".join(", ".join(group) for group in found.cycles) or "none"
    yield "largest", ", ".join(f"{name} {size}" for name, size in [*found.largest.items()][:3])


def main() -> None:
    """Print the counts of one tree, or of several side by side."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("trees", type=Path, nargs="+", help="Checkouts of the project.")
    parser.add_argument("--json", type=Path, help="Also write everything to this file.")
    given = parser.parse_args()
    counted = [census(tree) for tree in given.trees]
    print("| |" + "".join(f" {tree.resolve().name} |" for tree in given.trees))
    print("|---|" + "---|" * len(counted))
    for columns in zip(*map(rows, counted), strict=True):
        print(f"| {columns[0][0]} | {' | '.join(value for _, value in columns)} |")
    if given.json:
        names = [tree.resolve().name for tree in given.trees]
        write_json(given.json, dict(zip(names, map(asdict, counted), strict=True)))


if __name__ == "__main__":
    run(main)
