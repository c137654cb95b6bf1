"""Commands and links in README and docs: each command parses, each link leads somewhere."""

import os
import re
import shlex
from pathlib import Path

import click
import pytest

from retinaserve.scripts.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "plugins/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"```bash\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def commands(prefix: str) -> list[str]:
    """Return the shell lines of all pages that start with a word, continuation lines joined."""
    found = []
    for page in PAGES:
        for block in FENCE.findall(page.read_text()):
            lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
            found += [line.split(" #")[0].strip() for line in lines if line.startswith(f"{prefix} ")]
    return sorted(set(found))


@pytest.mark.parametrize("line", commands("retinaserve"))
def test_commands_parse(line: str) -> None:
    command: click.Command = main
    words = shlex.split(line)[1:]
    context = click.Context(main)
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None and name
        command = found
        context = click.Context(command, info_name=name, parent=context)
    command.parse_args(context, words)


@pytest.mark.parametrize("line", commands("make"))
def test_make_targets_exist(line: str) -> None:
    target = line.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_there_is_something_to_check() -> None:
    assert len(commands("retinaserve")) > 5 and len(commands("make")) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, heading in LINK.findall(page.read_text()):
        if target.startswith("http"):
            continue
        path = (page.parent / target) if target else page
        assert path.exists(), target
        assert not heading or heading in anchors(path), f"{target}#{heading}"


def anchors(page: Path) -> set[str]:
    """Return the names that a page's headings can be linked by, as GitHub makes them."""
    headings = HEADING.findall(page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_verb_explains_itself() -> None:
    """Help has a sentence for the verb and for each of its options."""

    def verbs(group: click.Group) -> list[click.Command]:
        context = click.Context(group)
        found = [group.get_command(context, name) for name in group.list_commands(context)]
        nested = [verbs(each) if isinstance(each, click.Group) else [each] for each in found if each]
        return [each for some in nested for each in some]

    for verb in verbs(main):
        assert verb.help, verb.name
        for parameter in verb.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{verb.name} {parameter.name}"


NOT_OURS = (
    "No space left on device",
    "Failed to initialize Python stub",
    "Socket closed",
    "This API is restricted",
)


def messages() -> list[str]:
    """Return the messages that the table of troubleshooting explains."""
    section = (ROOT / "docs" / "operations.md").read_text().split("## Troubleshooting")[1]
    rows = re.findall(r"^\| (`.+?`) \| ", section, re.MULTILINE)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("message", messages())
def test_explained_messages_are_still_said(message: str) -> None:
    """Each run of fixed words is in the source; formatting splits a message into such runs."""
    folders = ("training", "build_tools", "eval", "scripts")
    source = " ".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    if message.startswith(NOT_OURS):
        return
    for words in re.split(r"…|\{\w+\}|Address already in use|JPEG, PNG.*", message):
        run = words.strip(" :;,.()'")
        assert run in source, run


def test_every_behaviour_is_held_by_a_finding_or_a_test() -> None:
    text = (ROOT / "docs" / "behaviours.md").read_text().split("## The same thing")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| behaviour ")]
    shown = set()
    for row in rows:
        named = re.findall(r"`([^`]+)`", row.rstrip("| ").rsplit("|", 1)[1])
        path, *tests = named
        assert (ROOT / path).is_file(), row
        assert bool(tests) == path.startswith("tests/") and path.startswith(("tests/", "findings/")), row
        for test in tests:
            assert f"def {test}(" in (ROOT / path).read_text(), row
        shown.add(path)
    findings = {f"findings/{path.name}" for path in (ROOT / "findings").glob("[!_]*.sh")}
    assert findings == {path for path in shown if path.startswith("findings/")}


@pytest.mark.parametrize("path", sorted((ROOT / "findings").glob("[!_]*.sh")), ids=lambda path: str(path.stem))
def test_a_finding_says_what_it_is(path: Path) -> None:
    header = path.read_text()
    lines = header.splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# ") and os.access(path, os.X_OK)
    for word in ("Expected:", "Seen:", "Matters:"):
        assert re.search(rf"^# {word} +\S", header, re.MULTILINE), word
    assert re.search(r"==\d", header), "its packages are pinned"
