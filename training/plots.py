"""The picture of a run: its losses and its learning rate over the iterations.

    plot_losses(metrics_path(checkpoint), Path("curves.png"))

It draws what training/progress.py has kept and computes nothing.
"""

from pathlib import Path

from training.progress import read_metrics


def plot_losses(metrics: Path, output: Path) -> bool:
    """Draw the curves of a metrics file; return whether there was anything to draw."""
    reports = read_metrics(metrics)
    if not reports:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    losses = figure.add_subplot()
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
    figure.savefig(output, dpi=110)
    return True
