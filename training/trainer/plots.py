"""The pictures of a run: its losses, learning rate and scores over the iterations, and what its labels are like.

    plot_results(metrics_path(checkpoint), Path("model.results.png"))
    plot_labels(describe_labels(dataset, spec), spec, Path("model.labels.png"))

It draws what progress.py has kept and label_statistics.py has counted.
"""

from pathlib import Path
from typing import Any

from retinaserve.training.data.label_statistics import LabelStatistics
from retinaserve.training.spec import DetectorSpec
from retinaserve.training.trainer.progress import read_metrics, read_scores

MOST_CLASSES = 30


def plot_results(metrics: Path, output: Path) -> bool:
    """Draw the curves of a metrics file; return whether there was anything to draw."""
    reports, scores = read_metrics(metrics), read_scores(metrics)
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


def _figure(*, columns: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5 * columns, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot(1, columns, 1)
