"""Open Images' CSV of boxes.

    read_open_images(Path("validation-annotations-bbox.csv"), scene)

Corners are shares of the image; IsGroupOf is a crowd. Rows of images that are not in the folder are left out, for
the file lists millions. Names come from a CSV of two columns beside it, such as class-descriptions-boxable.csv.
"""

import csv
from pathlib import Path

from retinaserve.training.check.entries import number_of
from retinaserve.training.errors import UserError
from retinaserve.training.formats.scene import Scene

COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")


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
                values = [number_of(row[column]) for column in COLUMNS[2:]]
                if None in values or not row["LabelName"]:
                    scene.finds.add("label-line", "{}: {}", entry, values)
                elif size is not None:
                    x1, x2, y1, y2 = (value or 0.0 for value in values)
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
