"""What people look at to trust a run: curves, labels, a batch as the network sees it, and what it finds.

plot_results(reports, scores, Path("model.results.png"))
plot_labels(describe_labels(dataset, spec), spec, Path("model.labels.png"))
draw_batch(batch, spec.classes).save("model.train_batch.jpg")
draw_predictions(dataset, spec, found).save("model.val_predictions.jpg")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from retinaserve.training.data.dataset import CocoDataset, LabelStatistics
from retinaserve.training.data.stream import Batch
from retinaserve.training.detections import Detections
from retinaserve.training.draw import contact_sheet, draw
from retinaserve.training.spec import DetectorSpec

MOST_CLASSES = 30
MOST_IMAGES, TILE = 16, (360, 360)
SHOWN_SCORE = 0.3


def plot_results(
    reports: Sequence[Mapping[str, float]], scores: Sequence[Mapping[str, float]], output: Path
) -> bool:
    """Draw the curves of a metrics file's reports and validations; return whether there was anything to draw."""
    if not reports:
        return False
    figure, losses = _figure(columns=2 if scores else 1)
    iterations = [report["iteration"] for report in reports]
    for key, label, colour in (("cls_loss", "class loss", "tab:blue"), ("box_loss", "box loss", "tab:orange")):
        losses.plot(iterations, [report[key] for report in reports], label=label, color=colour)
    losses.set(xlabel="iteration", ylabel="loss", yscale="log")
    losses.grid(alpha=0.3, which="both")
    rate = losses.twinx()
    rate.plot(iterations, [report["lr"] for report in reports], color="0.7", linestyle="--", label="learning rate")
    rate.set(ylabel="learning rate", ylim=(0, None))
    lines = [*losses.get_lines(), *rate.get_lines()]
    losses.legend(lines, [str(line.get_label()) for line in lines], loc="upper right")
    if scores:
        axes = figure.add_subplot(1, 2, 2)
        places = [line["iteration"] for line in scores]
        for key, label in (("ap50", "AP50"), ("ap75", "AP75"), ("ap", "AP")):
            axes.plot(places, [line[key] for line in scores], label=label, marker="o", markersize=3)
        axes.set(xlabel="iteration", ylabel="validation", ylim=(0, 1))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    figure.savefig(output, dpi=110)
    return True


def plot_labels(statistics: LabelStatistics, spec: DetectorSpec, output: Path) -> None:
    """Draw how many labels each class has, and the boxes' sizes among the anchors'."""
    figure, classes = _figure(columns=2)
    counts = sorted(statistics.per_class.items(), key=lambda item: -item[1])[:MOST_CLASSES]
    classes.barh([name for name, _ in counts][::-1], [count for _, count in counts][::-1], color="tab:blue")
    classes.set(xlabel="boxes" if len(counts) == len(statistics.per_class) else f"boxes, {MOST_CLASSES} classes")
    axes = figure.add_subplot(1, 2, 2)
    axes.scatter(statistics.sizes[:, 0], statistics.sizes[:, 1], s=4, alpha=0.4, label="boxes")
    anchors = spec.anchor_table.reshape(-1, 4)
    sides = anchors[:, 2:] - anchors[:, :2]
    axes.scatter(sides[:, 0], sides[:, 1], marker="+", color="tab:orange", label="anchors")
    axes.set(
        xlabel="width, network's pixels",
        ylabel="height",
        xscale="log",
        yscale="log",
        title=f"{statistics.covered:.0%} of boxes fit an anchor",
    )
    axes.legend(loc="upper left")
    figure.savefig(output, dpi=110)


def draw_batch(batch: Batch, classes: Sequence[str]) -> Image.Image:
    """Draw the first images of a training batch with their boxes; crowd regions are thin and white."""
    tiles = []
    for pixels, target, image_id in zip(batch.images, batch.targets, batch.image_ids, strict=True):
        image = Image.fromarray(
            np.ascontiguousarray(pixels.byte().permute(1, 2, 0).cpu().numpy())
        )  # (3, H, W) -> (H, W, 3)
        boxes, crowd = target.boxes.numpy(), target.crowd.numpy()
        classes_of = target.classes.numpy()[~crowd].astype(np.int32)
        labelled = Detections(boxes[~crowd], np.ones(len(classes_of), np.float32), classes_of)
        drawn = draw(image, labelled, classes, within=TILE, scores=False, outlines=boxes[crowd])
        tiles.append((drawn, f"image {image_id}"))
        if len(tiles) == MOST_IMAGES:
            break
    return contact_sheet(tiles, tile=TILE)


def draw_predictions(dataset: CocoDataset, spec: DetectorSpec, found: Mapping[int, Detections]) -> Image.Image:
    """Draw what was found, above a score, on the first images; the annotations' boxes are thin and white."""
    tiles = []
    for index, labels in enumerate(dataset.labels):
        if labels.image_id not in found:
            continue
        shown = found[labels.image_id].above(SHOWN_SCORE)
        drawn = draw(dataset.load(index), shown, spec.classes, within=TILE, outlines=labels.boxes)
        tiles.append((drawn, labels.path.name))
        if len(tiles) == MOST_IMAGES:
            break
    return contact_sheet(tiles, tile=TILE)


def _figure(*, columns: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5 * columns, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot(1, columns, 1)
