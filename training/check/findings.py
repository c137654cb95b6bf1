"""Findings: a code that stays, how bad it is, what training and scoring do with it, how often, examples, a remedy.

    finds = Finds()
    finds.add("box-outside", "annotation {}: {}", 7, [90, 5, 9, 9])
    report = Report(summaries, finds.findings("train"))
    refuse_errors(report.findings, Path("train.json"))      # raises UserError for the first error

An error would crash a training or let it learn or score the wrong thing, so every verb refuses it; a warning is
worth a look; a note is good to know.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from retinaserve.training.errors import UserError

Severity = Literal["error", "warning", "note"]
EXAMPLES = 5
REFUSED, SAME, LEFT_OUT = "refused", "as listed", "left out"


@dataclass(frozen=True)
class Code:
    """What a code means, for how many of what; the remedy; what `train` and what `eval` and `infer` do with it."""

    severity: Severity
    means: str
    remedy: str
    training: str = REFUSED
    scoring: str = REFUSED


XYWH = "COCO boxes are [x, y, width, height] in pixels, from the top left corner"
TAKEN = "taken for what they say"
CODES: Mapping[str, Code] = {
    "file-unreadable": Code(
        "error",
        "the annotation file can't be used",
        "a COCO JSON file with images, annotations and categories, or a format that docs/data.md names",
    ),
    "value-text": Code(
        "note", "numbers or flags written as text or as fractions", "write 7, not '7' or 7.0", TAKEN, TAKEN
    ),
    "image-entry": Code(
        "error", "image entries without a usable id or file_name", "ids are integers, file names strings"
    ),
    "image-id-repeated": Code("error", "image ids that are used twice", "give every image its own id"),
    "image-file-repeated": Code(
        "warning",
        "files that are listed twice, with the same boxes",
        "list a file once, with all of its annotations",
        "the first entry alone",
        "the first entry alone",
    ),
    "image-file-split": Code(
        "error",
        "files that are listed twice, with other boxes each: what one entry has is background in the other",
        "list a file once, with all of its annotations",
    ),
    "image-name": Code(
        "note",
        "file names with backslashes or line breaks",
        "folders are parted by /",
        "read with /",
        "read with /",
    ),
    "image-missing": Code(
        "error", "images that are not there", "--images is the folder that file names start from"
    ),
    "image-unreadable": Code(
        "error",
        "images that can't be decoded",
        "save them again, or take them out",
        scoring="counts as an image without detections; exit code 3",
    ),
    "image-size": Code(
        "error",
        "images of another size than the file says: their boxes are of another image",
        "scale the boxes to the image, or bring back the image they were drawn on",
    ),
    "image-size-unknown": Code(
        "note", "images whose listed size is no size", "list the size, or none", "the file's own", "the file's own"
    ),
    "image-exif": Code(
        "error",
        "images turned by EXIF whose listed size is that before turning: their boxes are turned too",
        "turn the pixels and drop the tag (exiftran -ai, or Pillow's exif_transpose), or draw the boxes again",
    ),
    "image-empty": Code(
        "note",
        "images without a box",
        "label them if they show objects",
        "learnt as background",
        "what is found there is wrong",
    ),
    "image-dense": Code(
        "warning",
        "images with more than 100 boxes, which is as many as a detector answers unless it is told otherwise",
        "export with --max-detections",
        SAME,
        "COCO's AP takes 100 detections of a class in an image; ap_all takes all",
    ),
    "image-orientation": Code(
        "warning",
        "images whose metadata disagrees on which way up they are",
        "the first EXIF record decides, as in browsers: look whether the boxes fit, or save them again upright",
        "by EXIF's first record",
        "by EXIF's first record",
    ),
    "image-range": Code(
        "warning",
        "sets of more than 8 bits a sample that use a fraction of their range: nearly black for the network",
        "train with the --value-range that the sensor has",
        "scaled by the format's range, or --value-range",
        "scaled as in training",
    ),
    "image-limits": Code(
        "warning",
        "images that a server refuses unless it is built for them",
        "build --max-image-bytes N --max-image-pixels N",
        SAME,
        "refused, unless raised by the same flags",
    ),
    "image-repeated": Code("warning", "images that are there more than once", "keep one of each", SAME, SAME),
    "image-ambiguous": Code(
        "error", "names that several images have", "name the folder of the images that are meant"
    ),
    "image-unlabelled": Code(
        "note",
        "images that no label file is about",
        "label them, also those that show nothing",
        LEFT_OUT,
        LEFT_OUT,
    ),
    "image-unsized": Code(
        "error",
        "images whose size can't be read, and boxes that are shares of it",
        "save them again, or take them out",
    ),
    "category-entry": Code(
        "error", "categories without a usable id or name", "ids are integers, names are strings that aren't empty"
    ),
    "category-name": Code(
        "note", "category names with line breaks or spaces around them", "write them without", "without", "without"
    ),
    "category-repeated": Code("error", "categories with the id or name of another", "give each its own"),
    "category-alike": Code(
        "warning",
        "category names that differ in case or spaces alone",
        "merge them if they mean the same",
        "classes of their own",
        "classes of their own",
    ),
    "category-unused": Code(
        "warning",
        "categories without a box",
        "drop them: each costs a share of the network",
        SAME,
        "no AP",
    ),
    "category-rare": Code("warning", "categories with fewer than 10 boxes", "label more of them", SAME, SAME),
    "category-imbalance": Code(
        "note",
        "categories a hundred times rarer than the commonest",
        "watch their own AP, not the mean",
        SAME,
        SAME,
    ),
    "category-unnamed": Code(
        "warning",
        "classes that no list names",
        "put the list beside the labels: docs/data.md says which",
        "called by their numbers",
        "called by their numbers",
    ),
    "annotation-entry": Code(
        "error", "annotations that are no JSON objects, or whose iscrowd is no flag", "see the COCO data format"
    ),
    "annotation-id-repeated": Code(
        "warning",
        "annotation ids that are used twice: COCO's tools lose all but one",
        "number them afresh",
        "all are kept",
        "all are kept",
    ),
    "annotation-image": Code(
        "error", "annotations of images that are not listed", "list the image or correct the id"
    ),
    "annotation-category": Code(
        "error", "annotations of categories that are not listed", "list the category, or correct the id"
    ),
    "label-line": Code("error", "labels that can't be read", "correct the line; docs/data.md has the formats"),
    "label-unused": Code("note", "labels of images that are not in --images", "nothing to do", LEFT_OUT, LEFT_OUT),
    "label-overruled": Code(
        "note",
        "images that were annotated several times",
        "mark the right annotation as ground truth",
        "the ground truth alone, or the last",
        "the ground truth alone, or the last",
    ),
    "shape-skipped": Code(
        "warning", "shapes that have no box, or no class", "draw boxes or outlines", LEFT_OUT, LEFT_OUT
    ),
    "area-contradicts": Code(
        "warning",
        "areas that can't be those of what the boxes hold",
        "leave area out, or give that of the segmentation",
        "not looked at",
        "width x height takes their place",
    ),
    "box-malformed": Code("error", "boxes that are not four finite numbers", XYWH),
    "box-derived": Code(
        "note", "segmentations without a box", "nothing to do", "the box around them", "the box around them"
    ),
    "box-rotated": Code(
        "warning",
        "rotated boxes",
        "draw upright boxes where the corners matter",
        "the upright box around them",
        "the upright box around them",
    ),
    "box-flipped": Code(
        "warning",
        "boxes with a negative width or height",
        f"{XYWH}",
        "turned to the same rectangle",
        "turned to the same rectangle",
    ),
    "box-degenerate": Code(
        "warning", "boxes without an area", "draw them again, or drop them", LEFT_OUT, LEFT_OUT
    ),
    "box-tiny": Code("warning", "boxes thinner than 2 pixels", "drop them if they are accidents", SAME, SAME),
    "box-outside": Code("error", "boxes wholly outside of their image", XYWH),
    "box-overhang": Code(
        "warning", "boxes that reach over the border", "cut them in the file", "cut at the border", SAME
    ),
    "box-xyxy": Code("error", "boxes that look like [x1, y1, x2, y2]", f"{XYWH}: subtract x1 and y1"),
    "box-centre": Code("error", "boxes that look like [centre x, centre y, width, height]", XYWH),
    "box-normalised": Code("error", "boxes that look like shares of the image", f"{XYWH}: multiply by its size"),
    "box-repeated": Code(
        "warning",
        "boxes that are there twice, with the same category",
        "keep one of each",
        "learnt twice",
        "both are to be found",
    ),
    "crowd": Code(
        "note",
        "crowd regions",
        "nothing to do",
        "neither learnt nor background",
        "neither found nor missed, and what is found there not wrong",
    ),
    "no-boxes": Code("error", "no boxes to learn or to find", "boxes with iscrowd 0 and an area are expected"),
    "split-leak": Code(
        "error",
        "images in both splits, by content: the score would be of images trained on",
        "keep one",
        scoring="-",
    ),
    "split-similar": Code(
        "warning",
        "images in both splits that look almost the same",
        "keep a scene's images in one split",
        SAME,
        SAME,
    ),
    "split-same": Code(
        "warning",
        "validation is the training set",
        "the score is of images trained on; hold images back",
        SAME,
        SAME,
    ),
    "split-larger": Code(
        "warning",
        "more images to validate on than to learn from",
        "are the two files swapped? Learn from the larger",
        SAME,
        SAME,
    ),
    "split-categories": Code(
        "note",
        "categories whose ids differ between the splits, or that validation lacks",
        "nothing to do",
        "matched by name",
        "matched by name",
    ),
    "split-disjoint": Code(
        "error", "no category has the same name in both splits", "names must agree, ids need not", scoring="-"
    ),
    "split-unseen": Code(
        "warning",
        "categories to validate that are not in training",
        "move images of them",
        "can't be learnt",
        "never found: their AP of 0 counts",
    ),
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
    training: str
    scoring: str


@dataclass
class Finds:
    """Counts what is found by its code and keeps the first examples of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, code: str, example: str, *values: object) -> None:
        """Count a find; `example` is a format of the values, made only where it will be shown."""
        count = self.counts[code] = self.counts.get(code, 0) + 1
        if count <= EXAMPLES:
            text = example.format(*values) if values else example
            self.examples.setdefault(code, []).append(text if len(text) < 200 else f"{text[:197]}...")

    @property
    def errors(self) -> list[str]:
        """The codes found that are errors."""
        return [code for code in self.counts if CODES[code].severity == "error"]

    def findings(self, split: str = "") -> list[Finding]:
        """Return them, the worst first."""
        found = [
            Finding(
                code,
                known.severity,
                split,
                self.counts[code],
                known.means,
                tuple(self.examples[code]),
                known.remedy,
                known.training,
                known.scoring,
            )
            for code, known in ((code, CODES[code]) for code in self.counts)
        ]
        return worst_first(found)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings by their severity, those of one as `CODES` lists them."""
    places = {code: place for place, code in enumerate(CODES)}
    ranks = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: (ranks.index(finding.severity), places[finding.code]))


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


def refuse_errors(findings: Iterable[Finding], path: Path) -> None:
    """Raise a UserError that names the first error among the findings on a file, and how many more there are."""
    errors = worst_first(finding for finding in findings if finding.severity == "error")
    if not errors:
        return
    first = errors[0]
    more = f"; other kinds of errors: {len(errors) - 1}" if len(errors) > 1 else ""
    if first.code == "file-unreadable":
        raise UserError(f"{path}: {first.examples[0]} [{first.code}]", first.remedy)
    raise UserError(f"{path}: {_text(first)}{more}", f"{first.remedy}; `retinaserve data check` lists everything")


def describe(finding: Finding, purpose: Literal["training", "scoring"] = "training") -> str:
    """Return a finding in a line, with what is done about it where anything is."""
    split = f"{finding.split}: " if finding.split else ""
    done = finding.training if purpose == "training" else finding.scoring
    return f"{finding.severity}: {split}{_text(finding)}{'' if done == SAME else f'; {done}'}"


def _text(finding: Finding) -> str:
    rest = f" and {finding.count - 1} more" if finding.count > 1 else ""
    return f"{finding.message} [{finding.code}]: {finding.examples[0]}{rest}"
