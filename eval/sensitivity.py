"""Which layers INT8 hurts: each layer quantized alone, on labelled images, and then all but the worst.

    report = analyse(Path("model.pth"), options, log=print)
    report.layers[0].name       # for `export --exclude`
    print(report.table())

A layer's noise is what its rounding adds to the raw heads, as a share of what they vary: it needs few images and
tells layers apart long before AP does, which moves by chance. OpenVINO computes it, as it is served.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from retinaserve.build_tools.export import heads_graph, load_network
from retinaserve.build_tools.graph.graft import graft
from retinaserve.build_tools.openvino_cpu import compile_for_cpu
from retinaserve.build_tools.preprocess import Prepared, Preprocessor
from retinaserve.build_tools.quantize.calibrate import Int8Options, calibrate, draw
from retinaserve.build_tools.quantize.qdq import layers_of
from retinaserve.training.check.checks import scored_labels
from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError
from retinaserve.training.images.sources import annotated_files, spread
from retinaserve.training.scoring.scores import evaluate, match_classes
from retinaserve.training.spec import IMAGE, LETTERBOX, OUTPUTS, DetectorSpec

if TYPE_CHECKING:
    from retinaserve.build_tools.quantize.qdq import Layer

Heads = list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Options:
    """What is looked at."""

    images: Path
    annotations: Path
    int8: Int8Options
    count: int = 32  # images, spread over the set
    left_out: int = 5  # of the worst layers, one after the other


@dataclass(frozen=True)
class Finding:
    """One graph against the float one: noise as shares of 1, and AP of 1 on the images."""

    name: str
    class_noise: float
    box_noise: float
    ap: float

    @property
    def noise(self) -> float:
        """The larger of the two."""
        return max(self.class_noise, self.box_noise)


@dataclass(frozen=True)
class Sensitivity:
    """`layers` alone in INT8, the noisiest first; `left_out`: all in INT8 but the 0, 1, 2 … noisiest."""

    images: int
    float_ap: float
    layers: tuple[Finding, ...]
    left_out: tuple[Finding, ...]

    def table(self) -> str:
        """Return both lists as text; AP in points of 100, as differences to float."""
        width = max(len(each.name) for each in (*self.layers, *self.left_out))
        head = f"{'':<{width}}  class noise  box noise      AP"
        lines = [
            f"{'one layer in INT8':<{width}}{head[width:]}",
            *(self._line(each, width) for each in self.layers),
        ]
        lines += ["", f"{'all layers in INT8 but':<{width}}{head[width:]}"]
        lines += [self._line(each, width) for each in self.left_out]
        return "\n".join(lines)

    def _line(self, found: Finding, width: int) -> str:
        points = 100 * (found.ap - self.float_ap)
        return f"{found.name:<{width}}  {found.class_noise:>11.3%}  {found.box_noise:>9.3%}  {points:>+6.2f}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        values = asdict(self)
        return {"pictures": values.pop("images"), **values}


class _Evaluation:
    """Runs graphs on the same prepared images and compares them with the float one."""

    def __init__(self, spec: DetectorSpec, options: Options) -> None:
        truth = scored_labels(options.annotations, options.images)
        files = annotated_files(truth, options.images)
        chosen = set(spread(list(files.values()), options.count))
        found = {image_id: path for image_id, path in files.items() if path in chosen}
        decoding = options.int8.decoding
        preprocessor = Preprocessor(**spec.preprocessing, decoding=decoding)
        results = preprocessor.run([path.read_bytes() for path in found.values()])
        answers = zip(found, results, strict=True)
        self.prepared = {image_id: result for image_id, result in answers if isinstance(result, Prepared)}
        if not self.prepared:
            raise UserError(f"{options.images}: none of the {len(found)} images chosen can be read")
        boxes = [box for box in truth.boxes if box["image_id"] in self.prepared]
        self._truth = replace(
            truth,
            images={image_id: truth.images[image_id] for image_id in self.prepared},
            boxes=tuple({**box, "id": number} for number, box in enumerate(boxes, 1)),
        )
        self._categories = match_classes(spec.classes, truth.categories).category_ids
        self._head_names = [name for pair in spec.head_names for name in pair]

    def run(self, heads: onnx.ModelProto) -> tuple[list[Heads], float]:
        """Return the raw heads of each image (class and box maps in turns), and the AP."""
        request = compile_for_cpu(graft(heads, keep_heads=True).SerializeToString()).create_infer_request()
        maps: list[Heads] = []
        detections: dict[int, Detections] = {}
        for image_id, image in self.prepared.items():
            request.infer({IMAGE: image.image[None], LETTERBOX: image.letterbox[None]})
            # Copies: the next image is answered in the same memory.
            out = {name: request.get_tensor(name).data[0].copy() for name in (*self._head_names, *OUTPUTS)}
            maps.append([out[name] for name in self._head_names])
            detections[image_id] = Detections.of_outputs({**out, LETTERBOX: image.letterbox})
        return maps, evaluate(self._truth, detections, self._categories).ap or 0.0

    def compare(self, name: str, heads: onnx.ModelProto, expected: Sequence[Heads]) -> Finding:
        """Return how far a graph's heads and AP are from those expected."""
        maps, ap = self.run(heads)
        return Finding(name, noise(maps, expected, 0), noise(maps, expected, 1), ap)


def analyse(checkpoint: Path, options: Options, *, log: Callable[[str], None]) -> Sensitivity:
    """Measure every layer, and the worst ones left out; `log` gets a line for each graph. Raises UserError.

    Layers that `options.int8` excludes stay in float and are not measured.
    """
    spec, network = load_network(checkpoint)
    evaluation = _Evaluation(spec, options)
    calibration_images = draw(spec, options.int8)
    model = heads_graph(network, spec)
    calibrated = calibrate(model, spec, calibration_images, options.int8)
    expected, float_ap = evaluation.run(model)
    layers = layers_of(model, spec, options.int8.exclude)

    def measure(name: str, quantized: "Sequence[Layer]") -> Finding:
        return evaluation.compare(name, calibrated.quantize(options.int8.calibrator, quantized), expected)

    findings: list[Finding] = []
    for number, layer in enumerate(layers, 1):
        findings.append(measure(layer.name, [layer]))
        log(f"{number}/{len(layers)} {layer.name}: {findings[-1].noise:.3%}")
    findings.sort(key=lambda found: -found.noise)
    left_out = []
    for count in range(min(options.left_out, len(layers) - 1) + 1):
        worst = {found.name for found in findings[:count]}
        name = "none" if not count else f"{'and ' if count > 1 else ''}{findings[count - 1].name}"
        left_out.append(measure(name, [layer for layer in layers if layer.name not in worst]))
        log(f"all but {count}: {left_out[-1].noise:.3%}")
    return Sensitivity(len(evaluation.prepared), float_ap, tuple(findings), tuple(left_out))


def noise(maps: Sequence[Heads], expected: Sequence[Heads], kind: int) -> float:
    """Return the mean square difference over the variance of what is expected; kind 0 is classes, 1 boxes."""
    error = signal = 0.0
    for found, wanted in zip(maps, expected, strict=True):
        for a, b in zip(found[kind::2], wanted[kind::2], strict=True):
            error += float(np.square(a - b, dtype=np.float64).sum())
            signal += float(np.square(b - b.mean(), dtype=np.float64).sum())
    return error / signal if signal else 0.0


def plot(report: Sensitivity, path: Path, most: int = 30) -> None:
    """Draw the noisiest layers as bars into a PNG."""
    from matplotlib.figure import Figure

    shown = report.layers[:most][::-1]
    figure = Figure(figsize=(9, 1.2 + 0.24 * len(shown)), dpi=120, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(shown))
    axes.barh(places + 0.2, [100 * each.class_noise for each in shown], 0.4, label="classes", color="#2563eb")
    axes.barh(places - 0.2, [100 * each.box_noise for each in shown], 0.4, label="boxes", color="#f97316")
    axes.set_yticks(places, [each.name for each in shown])
    axes.set(xlabel="noise in the raw heads, % of their variance", ylim=(-0.8, len(shown) - 0.2))
    axes.set_title(f"One layer alone in INT8, the {len(shown)} noisiest of {len(report.layers)}")
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)
