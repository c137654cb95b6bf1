"""Formats in plain text: YOLO and KITTI's object detection, a file an image, and Open Images' CSV.

    read_yolo(Path("data.yaml"), scene, "train")        # or a folder of text files
    read_kitti(Path("label_2"), scene)

YOLO: `class x y w h`, the centre and the size as shares of the upright image; a sixth number, a confidence, is not
looked at. Seven numbers or more are an outline, and the box around it is taken, as by Ultralytics; with
`kpt_shape` in the YAML they are keypoints behind a box. An image without a text file is background.

KITTI: `type truncated occluded alpha x1 y1 x2 y2 ...`, corners in pixels. DontCare is a crowd of every class.

Open Images: corners as shares of the image; IsGroupOf is a crowd. Rows of images that are not in the folder are
left out, for the file lists millions. Names come from a CSV of two columns beside it, such as
class-descriptions-boxable.csv.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from retinaserve.training.check.entries import hull, number_of, numbers_of
from retinaserve.training.errors import UserError
from retinaserve.training.formats.scene import Scene

LISTS_OF_NAMES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")  # of Open Images
LEVELS = 3  # folders above the labels in which their names are looked for
NOT_LABELS = frozenset({*LISTS_OF_NAMES, "train.txt", "val.txt", "test.txt", "readme.txt"})


def text_files(folder: Path) -> Iterator[Path]:
    """Yield the text files below a folder that may hold labels."""
    for path in sorted(folder.rglob("*.txt")):
        if path.name.lower() not in NOT_LABELS and not path.name.startswith("README"):
            yield path


def is_kitti(folder: Path) -> bool:
    """Return whether the first lines of a folder's text files begin with a word."""
    for path in islice(text_files(folder), 100):
        for line in _lines(path):
            return number_of(line[0]) is None
    return False


def read_yolo(path: Path, scene: Scene, split: str) -> None:
    """Read a folder of text files, or a data.yaml: the labels of the images of the folder, or of a split in it."""
    if scene.folder is None:
        raise UserError(f"{path}: YOLO labels need the folder of their images", "--images names it")
    settings = _load_yaml(path) if path.is_file() else {}
    source, names = (path, _names_in(settings, path)) if path.is_file() else _find_names(path, scene.folder)
    keypoints = "kpt_shape" in (settings or (_load_yaml(source) if source and source.suffix != ".txt" else {}))
    scene.ids = {name: number for number, name in names.items()}
    for name, count in Counter(names.values()).items():
        if count > 1:
            scene.finds.add("category-repeated", "{!r}: {} times", name, count)
    used = set[Path]()
    by_name = defaultdict[str, list[Path]](list)
    for file in text_files(path) if path.is_dir() else ():
        by_name[file.name].append(file)
    for name in _images_of(path, settings, scene, split):
        image = scene.image(name)
        labels = _labels_of(scene.folder / name, name, path)
        alike = by_name[f"{Path(name).stem}.txt"]
        if labels is None and len(alike) == 1:
            (labels,) = alike
        if labels is None:
            continue
        if labels in used:
            scene.finds.add("image-ambiguous", "{}: of {} too", labels.name, name)
        used.add(labels)
        size = None
        for number, line in enumerate(_lines(labels), 1):
            size = size or scene.size(image)
            if size is None:
                break
            _yolo_line(scene, image, line, f"{labels.name}, line {number}", size, names, keypoints)
    if path.is_dir():
        for labels in text_files(path):
            if labels not in used:
                scene.finds.add("label-unused", "{}", labels.relative_to(path))


def _yolo_line(
    scene: Scene,
    image: int,
    line: list[str],
    entry: str,
    size: tuple[int, int],
    names: dict[int, str],
    keypoints: bool,
) -> None:
    values = [number_of(value) for value in line]
    number, shares = values[0], [value for value in values[1:] if value is not None]
    if number is None or not number.is_integer() or number < 0 or len(shares) < max(4, len(line) - 1):
        scene.finds.add("label-line", "{}: {}", entry, " ".join(line)[:60])
        return
    if keypoints or len(shares) in (4, 5):
        x, y, w, h = shares[:4]
        box = x - w / 2, y - h / 2, w, h
    else:
        around = hull(shares[::2], shares[1::2])
        if len(shares) % 2 or around is None:
            scene.finds.add("label-line", "{}: {} numbers", entry, len(line))
            return
        box = around
    name = names.get(int(number))
    if name is None:
        if names:
            scene.finds.add("annotation-category", "{}: class {:g}", entry, number)
            return
        name = f"class {number:g}"
        if name not in scene.ids:
            scene.ids[name] = int(number)
            scene.finds.add("category-unnamed", "{}", name)
    scene.box(image, name, [round(share * side, 4) for share, side in zip(box, size * 2, strict=True)], entry)


def read_kitti(path: Path, scene: Scene) -> None:
    """Read a folder of KITTI's label files."""
    for labels in text_files(path):
        stem = labels.relative_to(path).with_suffix("").as_posix()
        name = scene.of_stem(stem) if scene.folder else f"{stem}.png"
        if name is None:
            scene.finds.add("label-unused", "{}", labels.relative_to(path))
            continue
        image = scene.image(name)
        for number, line in enumerate(_lines(labels), 1):
            corners, entry = numbers_of(line[4:8]), f"{labels.name}, line {number}"
            if len(line) not in (15, 16) or corners is None:
                scene.finds.add("label-line", "{}: {}", entry, " ".join(line)[:60])
                continue
            x1, y1, x2, y2 = corners
            dont_care = line[0] == "DontCare"
            box = [round(value, 4) for value in (x1, y1, x2 - x1, y2 - y1)]
            scene.box(image, None if dont_care else line[0], box, entry, crowd=dont_care)
    scene.note_unlabelled()


def _lines(path: Path) -> list[list[str]]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError):
        raise UserError(f"{path}: not text [label-line]", "a text file of labels is expected") from None
    return [line.split() for line in text.splitlines() if line.strip()]


def _labels_of(image: Path, name: str, labels: Path) -> Path | None:
    """Return an image's text file: in the folder given, where Ultralytics looks for it, or beside the image."""
    stem = Path(name).with_suffix(".txt")
    places = [labels / stem, labels / stem.name] if labels.is_dir() else []
    parts = image.absolute().parts
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        places.append(Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt"))
    places.append(image.with_suffix(".txt"))
    if labels.is_file():
        places.append(labels.parent / "labels" / stem)
    return next((place for place in places if place.is_file()), None)


def _images_of(path: Path, settings: dict[str, Any], scene: Scene, split: str) -> list[str]:
    """Return the images that are meant: all of the folder, or the split's where the folder has several in it."""
    assert scene.folder is not None
    entries = settings.get(split) or (settings.get("valid") if split == "val" else None) or []
    entries = [entries] if isinstance(entries, str) else entries
    top = scene.folder.resolve()
    places = []
    for entry in map(str, entries if isinstance(entries, list) else []):
        # Roboflow writes ../train/images for what is beside the file.
        roots = path.parent / str(settings.get("path") or ""), path.parent
        known = [root / name for root in roots for name in (entry, entry.removeprefix("../"))]
        places += [place.resolve() for place in known if place.is_dir()][:1]
    inside = [place.relative_to(top).as_posix() for place in places if place.is_relative_to(top)]
    if not inside or "." in inside:
        return scene.names
    return [name for name in scene.names if any(name.startswith(f"{place}/") for place in inside)]


def _find_names(labels: Path, images: Path) -> tuple[Path | None, dict[int, str]]:
    """Look for the classes' names in and above the folders of labels and images."""
    for folder in (
        labels.absolute(),
        *labels.absolute().parents[:LEVELS],
        images.absolute(),
        images.absolute().parent,
    ):
        for name in LISTS_OF_NAMES:
            if (folder / name).is_file():
                lines = [" ".join(words) for words in _lines(folder / name)]
                return folder / name, dict(enumerate(lines))
        for place in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
            try:
                names = _names_in(_load_yaml(place), place)
            except UserError:
                continue
            return place, names
    return None, {}


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise UserError(f"{path}: YAML needs PyYAML", "pip install pyyaml") from None
    try:
        settings = yaml.safe_load(path.read_text("utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError):
        raise UserError(f"{path}: not YAML [file-unreadable]", "YOLO's data.yaml is expected") from None
    return settings if isinstance(settings, dict) else {}


def _names_in(settings: dict[str, Any], path: Path) -> dict[int, str]:
    names = settings.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(str(number).isdecimal() for number in names):
        raise UserError(f"{path}: no names of classes [file-unreadable]", "YOLO's data.yaml has `names`, a list")
    return {int(number): " ".join(str(name).split()) for number, name in names.items()}


def read_open_images(path: Path, scene: Scene) -> None:
    """Read a CSV. Raises UserError where it has not Open Images' columns."""
    if scene.folder is None:
        raise UserError(f"{path}: Open Images' boxes need the folder of their images", "--images names it")
    names = _names(path.parent)
    images: dict[str, int | None] = {}
    sizes: dict[int, tuple[int, int] | None] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{path}: no column {', '.join(missing)} [file-unreadable]", "Open Images' CSV is expected"
                )
            for number, row in enumerate(rows, 2):
                stem = row["ImageID"] or ""
                if stem not in images:
                    name = scene.of_stem(stem) or scene.of_stem(Path(stem).stem)  # some tools write the suffix
                    images[stem] = scene.image(name) if name else None
                    if name is None:
                        scene.finds.add("label-unused", "{}", stem)
                image = images[stem]
                if image is None:
                    continue
                if image not in sizes:
                    sizes[image] = scene.size(image)
                size, entry = sizes[image], f"line {number}"
                corners = numbers_of(row[column] for column in COLUMNS[2:])
                if corners is None or not row["LabelName"]:
                    scene.finds.add("label-line", "{}: {}", entry, [number_of(row[each]) for each in COLUMNS[2:]])
                elif size is not None:
                    x1, x2, y1, y2 = corners
                    box = x1 * size[0], y1 * size[1], (x2 - x1) * size[0], (y2 - y1) * size[1]
                    label = names.get(row["LabelName"], row["LabelName"])
                    scene.box(image, label, box, entry, crowd=row.get("IsGroupOf") == "1")  # -1 is unknown
    except (OSError, ValueError, csv.Error):
        raise UserError(f"{path}: no CSV that can be read [file-unreadable]", "Open Images' is expected") from None
    scene.note_unlabelled()


def _names(folder: Path) -> dict[str, str]:
    """Return the classes' names by their codes (/m/0cmf2), as far as a table beside the labels has them."""
    names: dict[str, str] = {}
    for path in sorted(folder.glob("*class*descriptions*.csv")):
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            names |= {row[0]: row[1] for row in csv.reader(file) if len(row) >= 2 and row[0].startswith("/")}
    return names
