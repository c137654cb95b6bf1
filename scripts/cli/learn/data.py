"""`data`: draw a data set, cut it into tiles, deal it into parts, find what is wrong with it, write it as COCO."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from retinaserve.scripts.cli.options import (
    COUNT,
    FILE,
    FOLDER,
    PATH,
    POSITIVE,
    TileSize,
    also_json_option,
    cut_options,
    labels_options,
    score_option,
    seed_option,
    setting_options,
    val_options,
)
from retinaserve.scripts.cli.output import bar, caution, name_next, note, warn
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json
from retinaserve.training.spec import STRIDES, Design

if TYPE_CHECKING:
    from retinaserve.training.check.findings import Finding, Report


@click.group()
def data() -> None:
    """Make, cut, split, check and convert data sets."""


@data.command()
@click.argument("directory", type=FOLDER)
@click.option("--train", type=COUNT, default=600, help="Images to train on.")
@click.option("--val", type=COUNT, default=120, help="Images held out.")
@seed_option
@click.option("--small", is_flag=True, help="Shapes of 12 to 28 pixels among others, images of 320 x 240.")
@click.option("--force", is_flag=True, help="Draw into a directory that is not empty.")
def shapes(directory: Path, train: int, val: int, seed: int, small: bool, force: bool) -> None:
    """Draw a synthetic COCO data set into DIRECTORY/train and DIRECTORY/val."""
    from retinaserve.scripts.shapes.draw import draw_dataset

    if directory.is_dir() and any(directory.iterdir()) and not force:
        raise UserError(f"{directory} is not empty", "name a new directory, or draw into it with --force")
    with bar(train + val, "drawing") as shown:
        # Neighbouring seeds of the command share no image: one set has the even numbers, one the odd.
        parts = {
            name: draw_dataset(
                directory / name, images=count, seed=2 * seed + odd, small=small, on_image=shown.update
            )
            for odd, (name, count) in enumerate((("train", train), ("val", val)))
        }
    for part in parts.values():
        click.echo(f"{part.annotations}: {part.image_count} images, {part.box_count} boxes")
    train_set, val_set = parts["train"], parts["val"]
    words: list[object] = [] if small else ["--config", "shapes"]
    words += ["--images", train_set.images, "--annotations", train_set.annotations]
    words += ["--val-images", val_set.images, "--val-annotations", val_set.annotations]
    _name_training(words)


@data.command()
@click.argument("directory", type=FOLDER)
@click.option("--side", type=click.IntRange(min=1000), default=20_000, help="Pixels of a side.")
@seed_option
def mosaic(directory: Path, side: int, seed: int) -> None:
    """Draw one large GeoTIFF with small shapes, and its annotations, into DIRECTORY: to try --tile with."""
    from retinaserve.scripts.shapes.scenes import BLOCK, draw_mosaic

    with bar((side // BLOCK) ** 2, "drawing", unit="block") as shown:
        drawn = draw_mosaic(directory, side=side, seed=seed, on_block=shown.update)
    click.echo(f"{drawn.annotations}: {drawn.box_count} boxes in {drawn.images / 'mosaic.tif'}")
    words = ["--tile", "auto", "--images", drawn.images, "--annotations", drawn.annotations]
    name_next(f"retinaserve eval {shlex.join(map(str, words))}")


@data.command()
@click.argument("directory", type=FOLDER)
@click.option("--size", type=click.IntRange(min=64), nargs=2, default=(480, 640), help="Height and width, even.")
@click.option("--seconds", type=POSITIVE, default=20.0, help="How long it is.")
@click.option("--fps", type=POSITIVE, default=25.0, help="Frames a second.")
@seed_option
def film(directory: Path, size: tuple[int, int], seconds: float, fps: float, seed: int) -> None:
    """Draw a video of moving shapes, film.mp4, into DIRECTORY, and their identities, film.txt (MOTChallenge)."""
    from retinaserve.scripts.shapes.scenes import MOST_FRAMES, draw_film

    size = (size[0] // 2 * 2, size[1] // 2 * 2)
    if not seconds * fps <= MOST_FRAMES:
        raise click.UsageError(f"{seconds:g} seconds of {fps:g} frames are more than {MOST_FRAMES} frames")
    with bar(round(seconds * fps), "drawing", unit="frame") as shown:
        video, truth, boxes = draw_film(
            directory, size=size, seconds=seconds, fps=fps, seed=seed, on_frame=shown.update
        )
    click.echo(f"{truth}: {boxes} boxes in {video}")
    name_next(f"retinaserve predict {shlex.quote(str(video))} --track --output boxes.mp4")


@data.command()
@click.argument("directory", type=FOLDER)
@labels_options
@click.option("--tile", type=TileSize(), default="auto", metavar="auto|H,W", help="auto: by the labels' sizes.")
@setting_options(Design, names=("size", "anchor_size"))
@cut_options
def tile(
    directory: Path,
    images: Path,
    annotations: Path,
    tile: "tuple[int, int] | Literal['auto']",
    size: tuple[int, int],
    anchor_size: float,
    **cut: Any,
) -> None:
    """Cut a labelled set of large images into tiles, into DIRECTORY: PNGs, and boxes clipped to them."""
    from retinaserve.training.data.dataset import CocoDataset
    from retinaserve.training.data.tiling import Cut, suitable_tile, tile_dataset

    dataset = CocoDataset(images, annotations)
    if tile == "auto":
        tile = suitable_tile(dataset, size=size, anchor=STRIDES[0] * anchor_size)
    with bar(len(dataset), "cutting") as shown:
        coco = tile_dataset(dataset, directory, Cut(tile, **cut), on_image=shown.update)
    written = CocoDataset(directory / "images", coco)
    click.echo(
        f"{written.truth.path}: {len(written)} tiles of {tile[0]} x {tile[1]}, {written.box_count} boxes "
        f"of {dataset.box_count}"
    )
    _name_training(["--images", directory / "images", "--annotations", written.truth.path])


@data.command()
@labels_options
@val_options
@also_json_option
def check(
    images: Path, annotations: Path, val_images: Path | None, val_annotations: Path | None, json_path: Path | None
) -> None:
    """Find what is wrong with a labelled data set; exits with 3 if training on it would go wrong.

    Every finding has a code that stays the same, a count, examples and a remedy: docs/data.md.
    """
    from retinaserve.training.check.checks import check_data
    from retinaserve.training.check.snapshot import read_split

    with bar(title="reading") as shown:
        train, val = read_split("train", images, annotations, on_image=shown.update), None
        if val_annotations:
            where = val_images or images
            val = read_split("val", where, val_annotations, split="val", on_image=shown.update)
    report = check_data(train, val)
    if json_path:
        write_json(json_path, report.to_dict())
    show(report)
    if report.errors:
        sys.exit(Exit.BAD_DATA)
    words: list[object] = ["--images", images, "--annotations", annotations]
    words += ["--val-images", val_images] if val_images else []
    words += ["--val-annotations", val_annotations] if val_annotations else []
    if not Path("/dev/nvidiactl").exists():  # torch would take seconds to say so
        words = ["--config", "cpu", *words]  # the defaults are for a GPU
    _name_training(words)


@data.command()
@click.argument("labels", type=PATH)
@click.argument("output", type=FILE)
@click.option("--images", type=FOLDER, help="Folder of the images; file names are written relative to it.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="train", help="Of a data.yaml.")
def convert(labels: Path, output: Path, images: Path | None, split: str) -> None:
    """Write LABELS, in any format that docs/data.md names, to OUTPUT as a COCO JSON file.

    What `train` and `eval` read is what is written: boxes, without outlines, with what was put right.
    """
    from retinaserve.training.check.findings import describe, refuse_errors
    from retinaserve.training.coco import coco_of, read_labels

    if output.suffix.lower() != ".json":
        raise UserError(f"{output}: a file name that ends in .json is expected", code=Exit.USAGE)
    found = read_labels(labels, images, split=split)
    refuse_errors(found.findings, labels)
    for finding in found.findings:
        warn(describe(finding))
    write_json(output, coco_of(found, images), indent=None)
    click.echo(
        f"{output}: {len(found.images)} images, {len(found.boxes)} boxes, {len(found.categories)} categories"
    )
    shown = shlex.join(["--images", str(images or Path()), "--annotations", str(output)])
    name_next(f"retinaserve data check {shown}")


@data.command("split")
@click.argument("labels", type=PATH)
@click.argument("output", type=FOLDER)
@click.option("--images", type=FOLDER, required=True, help="Folder that the labels' file names start from.")
@click.option(
    "--val", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.2, help="Share to hold out."
)
@click.option("--test", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="Share of a third part.")
@seed_option
@click.option(
    "--group",
    metavar="folder|REGEX",
    help="Also keep together: images of a folder, or of the same match in their names, such as 'patient\\d+'.",
)
@also_json_option
def split_(
    labels: Path,
    output: Path,
    images: Path,
    val: float,
    test: float,
    seed: int,
    group: str | None,
    json_path: Path | None,
) -> None:
    """Deal LABELS into OUTPUT/train.json, val.json and test.json: look-alikes together, each class in each part.

    A score on images that look like those learnt from is too good. Images of the same bytes, of almost the same
    looks and of one --group go to the same part; what is left that looks alike across parts is listed.
    """
    from retinaserve.training.check.findings import describe, refuse_errors
    from retinaserve.training.check.snapshot import read_split
    from retinaserve.training.coco import coco_of
    from retinaserve.training.data.split import key_of, split

    if val + test >= 1:
        raise click.UsageError("--val and --test leave nothing to learn from")
    key = key_of(group)
    shares = {"train": 1 - val - test, "val": val} | ({"test": test} if test else {})
    targets = {name: output / f"{name}.json" for name in shares}
    for target in targets.values():
        if target.exists() and labels.exists() and target.samefile(labels):
            raise UserError(f"{target} would be overwritten", "name another folder", code=Exit.USAGE)
    with bar(title="reading") as shown:
        read = read_split("all", images, labels, on_image=shown.update)
    if read.problem:
        raise UserError(f"{labels}: {read.problem}", read.hint)
    refuse_errors(read.labels.findings, labels)
    for finding in read.labels.findings:
        warn(describe(finding))
    missing = [read.labels.images[number] for number, file in read.files.items() if not file.exists or file.error]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(read.files)} images can't be read: {', '.join(missing[:3])}",
            f"`retinaserve data check` says why; {images} is where they are expected",
        )
    parts = split(read, shares, seed=seed, key=key)
    content = coco_of(read.labels, images)
    for name, target in targets.items():
        ids = set(parts.images[name])
        mine = {
            "images": [entry for entry in content["images"] if entry["id"] in ids],
            "annotations": [box for box in content["annotations"] if box["image_id"] in ids],
        }
        write_json(target, {**mine, "categories": content["categories"]}, indent=None)
    report = parts.to_dict(read.labels)
    if json_path:
        write_json(json_path, report)
    _print_parts(report)
    words: list[object] = ["--images", images, "--annotations", targets["train"]]
    _name_training([*words, "--val-images", images, "--val-annotations", targets["val"]])


@data.command()
@click.argument("report", type=FILE)
@click.option("--images", type=FOLDER, required=True, help="Folder that the labels' file names start from.")
@click.option("--annotations", type=PATH, required=True, help="The labels that the report was made on.")
@click.option("--output", type=FILE, default=Path("review.html"), help="The page.")
@click.option("--count", type=COUNT, default=60, help="Places to show, at most.")
@score_option
@also_json_option
def review(
    report: Path,
    images: Path,
    annotations: Path,
    output: Path,
    count: int,
    score: float,
    json_path: Path | None,
) -> None:
    """Show where labels and a detector disagree most, by the --json REPORT of `infer` or `eval`.

    What a detector is sure of and nobody labelled, or labelled otherwise, is often a mistake of the labels.
    """
    from retinaserve.eval.report.analysis import read_baseline
    from retinaserve.eval.report.review import KINDS, disagreements, write_review
    from retinaserve.training.check.checks import scored_labels

    truth = scored_labels(annotations, images, warn=warn)
    classified = read_baseline(report, truth).classified
    found = disagreements(classified, truth, count=count, least=score)
    with bar(len(found), unit="place", leave=False) as shown:
        write_review(found, classified, images, output, on_figure=shown.update)
    if json_path:
        write_json(json_path, [asdict(each) for each in found])
    for kind, what in KINDS.items():
        click.echo(f"{sum(each.kind == kind for each in found):>5} {what}")
    note(f"{output}: open it in a browser")


def _print_parts(report: Mapping[str, Any]) -> None:
    """Print how many images show each class in each part, and what looks alike."""
    names = list(report["parts"])
    classes = report["classes"]
    widest = max(len(name) for name in [*classes, "images"])
    click.echo(f"{'':<{widest}}" + "".join(f"  {name:>7}" for name in names))
    rows = {"images": [report["parts"][name]["images"] for name in names], **classes}
    for label, counts in rows.items():
        click.echo(f"{label:<{widest}}" + "".join(f"  {count:>7}" for count in counts))
    alike = report["alike"]
    click.echo(
        f"kept together: {alike['images']} images in {alike['groups']} groups; dealt one by one, "
        f"{alike['torn']} would have a look-alike in another part"
    )
    if alike["largest"]:
        shown = ", ".join(alike["largest"][:3])
        click.echo(
            f"the largest group has {len(alike['largest'])} images: {shown}{' ...' * (len(alike['largest']) > 3)}"
        )
    for pair in alike["closest"]:
        differs = f"{pair['differs']} of 512 signs differ"
        caution(f"parted, but look at them: {pair['one']} and {pair['other']} ({differs})")
    for place, part in enumerate(names):
        absent = [label for label, counts in classes.items() if any(counts) and not counts[place]]
        if absent:
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            caution(f"warning: {part} does not show {', '.join(absent[:5])}{more}")


def _name_training(words: Sequence[object]) -> None:
    """Name the next command, to be pasted as it is."""
    name_next(f"retinaserve train model.pth {shlex.join(map(str, words))}")


def outcome(finding: "Finding") -> str:
    """Return what training and scoring do about a finding."""
    if finding.training == finding.scoring:
        return f"training and scoring: {finding.training}"
    return f"training: {finding.training}, scoring: {finding.scoring}"


def show(report: "Report") -> None:
    """Print a report: what each split holds, then the findings, the worst first."""
    for split in report.splits:
        click.echo(
            f"{split.name}: {split.images} images, {split.empty_images} without boxes; {split.boxes} boxes, "
            f"{split.crowds} crowds"
        )
        most = max(split.boxes_per_category.values(), default=0)
        widest = max((len(name) for name in split.boxes_per_category), default=0)
        for name, count in sorted(split.boxes_per_category.items(), key=lambda pair: -pair[1])[:20]:
            click.echo(f"  {name:<{widest}}  {count:>7}  {'#' * round(30 * count / max(1, most))}")
        if len(split.boxes_per_category) > 20:
            click.echo(f"  and {len(split.boxes_per_category) - 20} more")
    colours = {"error": "red", "warning": "yellow", "note": "cyan"}
    for finding in report.findings:
        severity = click.style(f"{finding.severity:<7}", fg=colours[finding.severity])
        click.echo(f"{severity} {finding.code:<22} {finding.count:>6}  {finding.message} ({finding.split})")
        for example in finding.examples:
            click.echo(f"          {example}")
        click.echo(f"        > {finding.remedy}; {outcome(finding)}")
    errors = sum(finding.severity == "error" for finding in report.findings)
    warnings = sum(finding.severity == "warning" for finding in report.findings)
    click.echo(f"kinds of errors: {errors}, of warnings: {warnings}")
