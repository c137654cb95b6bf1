"""What an operator wrote into a repository's configs is still there after the next build, comments too."""

from pathlib import Path

import pytest

from retinaserve.build_tools.repository.builder import build_repository
from retinaserve.build_tools.repository.configs import BuildOptions, read_config, write_config
from retinaserve.build_tools.repository.versions import Pins, read_pins, write_pins
from tests.cli import invoke


@pytest.fixture
def edited(toy_onnx: Path, tmp_path: Path) -> Path:
    """A repository with a shorter queue, three instances, a parameter of its own, and a word on why."""
    build_repository(toy_onnx, tmp_path / "repository")
    path = tmp_path / "repository" / "preprocess" / "config.pbtxt"
    text = path.read_text()
    for old, new in (
        ("    max_queue_size: 32\n", "    # The camera gives up.\n    max_queue_size: 5  # was 32\n"),
        ("  count: 2\n  kind", "  count: 3\n  kind"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    own = 'parameters { key: "team" value { string_value: "night shift" } }\n'
    path.write_text(f"# Ask Kim before you change this.\n{text}{own}")
    return tmp_path / "repository"


def test_a_build_keeps_what_was_edited_and_says_so(edited: Path, toy_onnx: Path) -> None:
    path = edited / "preprocess" / "config.pbtxt"
    before = path.read_text()
    built = build_repository(toy_onnx, edited)
    assert path.read_text() == before
    told = "\n".join(built.kept)
    assert built.version == 2 and built.kept and all(line.startswith("preprocess: ") for line in built.kept)
    assert "max_queue_size: 5" in told and "count: 3" in told and 'string_value: "night shift"' in told


def test_what_is_asked_for_now_counts_and_comments_stay(edited: Path, toy_onnx: Path) -> None:
    options = BuildOptions(max_queue=7, max_batch=2, max_image_pixels=99)
    build_repository(toy_onnx, edited, options=options)
    path = edited / "preprocess" / "config.pbtxt"
    config, text = read_config(path), path.read_text()
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 7
    assert (config.max_batch_size, config.instance_group[0].count) == (2, 3)
    assert config.parameters["max_image_pixels"].string_value == "99"
    assert "# Ask Kim before you change this." in text and "# The camera gives up." in text
    assert build_repository(toy_onnx, edited).version == 3  # and the options of then are the settings of now
    again = read_config(path)
    assert (again.max_batch_size, again.parameters["max_image_pixels"].string_value) == (2, "99")
    asked = BuildOptions(asked=frozenset({"max_image_pixels"}))
    build_repository(toy_onnx, edited, options=asked)
    assert read_config(path).parameters["max_image_pixels"].string_value == "64000000"


def test_a_repository_nobody_edited_says_nothing(toy_onnx: Path, tmp_path: Path) -> None:
    first = build_repository(toy_onnx, tmp_path / "repository")
    texts = {path: path.read_text() for path in first.repository.rglob("config.pbtxt")}
    second = build_repository(toy_onnx, first.repository)
    assert first.kept == second.kept == () and len(texts) == 3
    assert {path: path.read_text() for path in texts} == texts


def test_pins_leave_comments_too(edited: Path, toy_onnx: Path) -> None:
    build_repository(toy_onnx, edited)
    pins = Pins(served=1, loaded=(1, 2), previous=2)
    write_pins(edited, pins)
    text = (edited / "preprocess" / "config.pbtxt").read_text()
    assert read_pins(edited) == pins and "# Ask Kim" in text and "max_queue_size: 5  # was 32" in text


FILES = {
    "in another form": ('# why\nname: "a" max_batch_size: 3 # here\nbackend: "python"\n', {"why", "here"}),
    "a # in a string": ('# why\nname: "a"\nmax_batch_size: 3\nbackend: "py#thon"\n', {"why"}),
    "no comment": ('name: "a"\nmax_batch_size: 3\nbackend: "python"\n', set()),
}


@pytest.mark.parametrize("case", FILES)
def test_comments_stay_whatever_the_file_looks_like(case: str, tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    text, comments = FILES[case]
    path.write_text(text)
    config = read_config(path)
    config.max_batch_size = 8
    config.input.add(name="image", dims=[3])
    write_config(path, config)
    assert read_config(path) == config
    assert all(f"# {comment}" in path.read_text() for comment in comments)


def test_the_verb_tells(edited: Path, toy_onnx: Path) -> None:
    words = ["build", str(toy_onnx), "--output", str(edited)]
    result = invoke(*words)
    assert (
        result.exit_code == 0 and "kept as the repository has it: preprocess: max_queue_size: 5" in result.stderr
    )
    result = invoke(*words, "--max-image-pixels", "64000000", "--max-queue", "6")
    assert "max_queue_size: 6" in (edited / "preprocess" / "config.pbtxt").read_text()
