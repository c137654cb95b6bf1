"""Findings of a check: a code that stays, how bad it is, how often, examples, and what to do.

    finding = Finding.of("box-outside", "train", ["annotation 7: ..."])
    report.errors, report.to_dict()
    refuse_errors(report)                       # raises UserError for the first error

An error would crash a training or let it learn or score the wrong thing; a warning is worth a look; a note is
good to know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from retinaserve.training.errors import UserError

Severity = Literal["error", "warning", "note"]
EXAMPLES = 5


@dataclass(frozen=True)
class Code:
    """What a code means, for how many of what, and the remedy."""

    severity: Severity
    means: str
    remedy: str


XYWH = "COCO boxes are [x, y, width, height] in pixels, from the top left corner"
CODES: Mapping[str, Code] = {
    "file-unreadable": Code(
        "error", "the annotation file can't be used", "a COCO JSON file with images, annotations and categories"
    ),
    "image-entry": Code(
        "error", "image entries without a usable id or file_name", "ids are integers, file names strings"
    ),
    "image-id-repeated": Code("error", "image ids that are used twice", "give every image its own id"),
    "image-file-repeated": Code(
        "warning", "files that are listed twice", "list a file once, with all of its annotations"
    ),
    "image-missing": Code(
        "error", "images that are not there", "--images is the folder that file names start from"
    ),
    "image-unreadable": Code("error", "images that can't be decoded", "save them again, or take them out"),
    "image-size": Code(
        "error",
        "images of another size than the file says: their boxes are of another image",
        "scale the boxes to the image, or bring back the image they were drawn on",
    ),
    "image-exif": Code(
        "error",
        "images turned by EXIF whose listed size is that before turning: their boxes are turned too",
        "turn the pixels and drop the tag (exiftran -ai, or Pillow's exif_transpose), or draw the boxes again",
    ),
    "image-empty": Code("note", "images without a box, learnt as background", "label them if they show objects"),
    "image-repeated": Code("warning", "images that are there more than once", "keep one of each"),
    "category-entry": Code(
        "error", "categories without a usable id or name", "ids are integers, names are strings that aren't empty"
    ),
    "category-repeated": Code("error", "categories with the id or name of another", "give each its own"),
    "category-alike": Code(
        "warning", "category names that differ in case or spaces alone", "merge them if they mean the same"
    ),
    "category-unused": Code("warning", "categories without a box", "drop them: each costs a share of the network"),
    "category-rare": Code("warning", "categories with fewer than 10 boxes", "label more of them"),
    "category-imbalance": Code(
        "note", "categories a hundred times rarer than the commonest", "watch their own AP, not the mean"
    ),
    "annotation-entry": Code("error", "annotations that are no JSON objects", "see the COCO data format"),
    "annotation-id-repeated": Code(
        "warning", "annotation ids that are used twice: COCO's tools lose all but one", "number them afresh"
    ),
    "annotation-image": Code(
        "error", "annotations of images that are not listed", "ids must match in type too: 7 is not '7'"
    ),
    "annotation-category": Code(
        "error", "annotations of categories that are not listed", "list the category, or correct the id"
    ),
    "box-malformed": Code("error", "boxes that are not four finite numbers", XYWH),
    "box-degenerate": Code(
        "warning", "boxes without an area, left out of training", "draw them again, or drop them"
    ),
    "box-tiny": Code("warning", "boxes thinner than 2 pixels", "drop them if they are accidents"),
    "box-outside": Code("error", "boxes wholly outside of their image", XYWH),
    "box-overhang": Code("warning", "boxes that reach over the border, cut at it", "cut them in the file"),
    "box-xyxy": Code("error", "boxes that look like [x1, y1, x2, y2]", f"{XYWH}: subtract x1 and y1"),
    "box-centre": Code("error", "boxes that look like [centre x, centre y, width, height]", XYWH),
    "box-normalised": Code("error", "boxes that look like shares of the image", f"{XYWH}: multiply by its size"),
    "box-repeated": Code("warning", "boxes that are there twice, with the same category", "keep one of each"),
    "crowd": Code("note", "crowd regions: neither learnt nor counted as background", "nothing to do"),
    "no-boxes": Code("error", "no boxes to learn", "annotations with iscrowd 0 and an area are expected"),
    "split-leak": Code(
        "error", "images in both splits, by content: the score would be of images trained on", "keep one"
    ),
    "split-similar": Code(
        "warning", "images in both splits that look almost the same", "keep a scene's images in one split"
    ),
    "split-same": Code(
        "warning", "validation is the training set", "the score is of images trained on; hold images back"
    ),
    "split-larger": Code(
        "warning",
        "more images to validate on than to learn from",
        "are the two files swapped? Learn from the larger",
    ),
    "split-categories": Code("error", "categories that differ between the splits", "ids and names must agree"),
    "split-unseen": Code("warning", "categories to validate that are not in training", "move images of them"),
}


@dataclass(frozen=True)
class Finding:
    """One code's finds in one split."""

    code: str
    severity: Severity
    split: str
    count: int
    message: str
    examples: tuple[str, ...]
    remedy: str

    @classmethod
    def of(cls, code: str, split: str, finds: Sequence[str]) -> Self:
        """Return the finding of a code with all its finds, the first few as examples."""
        known = CODES[code]
        return cls(code, known.severity, split, len(finds), known.means, tuple(finds[:EXAMPLES]), known.remedy)


@dataclass(frozen=True)
class Summary:
    """What a split holds."""

    name: str
    annotations: str
    images: int
    boxes: int
    crowds: int
    empty_images: int
    boxes_per_category: Mapping[str, int]


@dataclass(frozen=True)
class Report:
    """Everything that was found, the worst first."""

    splits: tuple[Summary, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that training would suffer from."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        counts = {
            f"{severity}s": sum(finding.severity == severity for finding in self.findings)
            for severity in ("error", "warning", "note")
        }
        return {**asdict(self), **counts}


def refuse_errors(report: Report) -> None:
    """Raise a UserError that names the first error of a report and how many more there are."""
    if not report.errors:
        return
    first = report.errors[0]
    more = f"; other kinds of errors: {len(report.errors) - 1}" if len(report.errors) > 1 else ""
    where = next((summary.annotations for summary in report.splits if summary.name == first.split), first.split)
    raise UserError(
        f"{where}: {_text(first)}{more}",
        f"{first.remedy}; `retinaserve data check` lists everything",
    )


def describe(finding: Finding) -> str:
    """Return a finding in a line."""
    return f"{finding.severity}: {finding.split}: {_text(finding)}"


def _text(finding: Finding) -> str:
    rest = f" and {finding.count - 1} more" if finding.count > 1 else ""
    return f"{finding.message} [{finding.code}]: {finding.examples[0]}{rest}"
