"""The model table as a Markdown page, from what scripts/lab/model_table.py measured.

    Path("docs/model_zoo.md").write_text(page(table))

What was not measured yet is a dash; sizes and operations are counted here, as they take no time. It measures
nothing.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import fields

from retinaserve.scripts.lab.model_table import ALONE, FULL, Flavour, Options, Scored, Table, network_cost
from retinaserve.scripts.precisions import random_spec, ratios
from retinaserve.training.spec import BACKBONES, DetectorSpec

HEAD = """\
# Model table

What each backbone costs, and what the detectors trained here reach. Written by a command, not by hand:

```bash
{command}
```

## Cost

A RetinaNet of the published sizes (pyramid of 256 channels, four convolutions a head, 9 anchors) with 80 classes
at {size} x {size}. **The weights are random**: times are those of a trained one but for NMS, which has little to
do here; accuracy has to be trained, or [imported](training.md#start-from-existing-weights).

- **GFLOPs**: of one picture up to the heads' outputs, a multiplication and an addition counted as two.
- **file**: the ONNX file that is served. bf16 is the float file, computed otherwise.
- **model**: milliseconds in OpenVINO for a lone picture as the server runs it (all cores, one stream, the latency
  hint), the mean by the server's clock. **request**: the median from JPEG bytes to boxes, alone, over gRPC.
- **images/s**: through the server with {full} requests in flight. **x fp32**: the median over the rounds of the
  ratio within a round, in which the precisions of a backbone take turns, and its range. Backbones did not: compare
  them with more care.
- **GPU**: TensorRT plans. Not run, as there was no GPU ([all that has not](not-run.md)); `bench` and
  [verify](verify.md) measure them where there is one.

{machine}
"""

COST = """\
| backbone | parameters, M | GFLOPs | precision | file, MB | model, ms | request, ms | images/s | x fp32 | GPU |
|---|---:|---:|---|---:|---:|---:|---:|---:|---|"""

TRAINED_HEAD = """
## Trained here

AP and AP50 of held-out pictures in points of 100, JPEG bytes in and boxes out of a real Triton; INT8 by the
default calibrator, minmax. "/ 32" is the width of the first stage, 64 if nothing is said; M are millions of
parameters. How they were trained: [benchmarks.md](benchmarks.md). Speed and other calibrators on a detector of
your own: [quantization.md](quantization.md).
"""

TRAINED = """\
| detector | backbone | size | classes | M | AP fp32 | int8 | AP50 fp32 | int8 | file, MB | int8 | GPU |
|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"""


def page(table: Table) -> str:
    """Return the page; every backbone has a row, measured or not."""
    text = HEAD.format(command=command(table), size=table.options.size, full=FULL, machine=_machine(table))
    lines = [text, COST, *(line for name in BACKBONES for line in cost_lines(table, name))]
    if table.trained:
        lines += [TRAINED_HEAD, TRAINED, *(trained_line(name, row) for name, row in table.trained.items())]
    return "\n".join(lines) + "\n"


def cost_lines(table: Table, backbone: str) -> Iterator[str]:
    """Yield a backbone's rows: one a precision."""
    size = table.options.size
    parameters, operations = network_cost(random_spec(backbone, (size, size)))
    head = [backbone, f"{parameters / 1e6:.1f}", f"{operations / 1e9:.0f}"]
    rows = table.backbones.get(backbone, [])
    for row in rows:
        yield _line([*(head if row is rows[0] else ["", "", ""]), *_times(row, rows[0])])
    if not rows:
        yield _line([*head, *"-" * 6, "not run"])


def _times(row: Flavour, base: Flavour) -> Iterator[str]:
    yield row.precision
    yield f"{row.megabytes:.1f}"
    yield f"{statistics.median(row.model_ms):.0f}"
    yield f"{statistics.median(row.request_ms):.0f}"
    yield f"{statistics.median(row.ips):.2f}"
    yield _median(ratios(row.ips, base.ips))
    yield "not run"


def _median(values: Sequence[float]) -> str:
    """Return the median, and how far the rounds lie apart if that shows in two decimals."""
    lowest, median, highest = (f"{of(values):.2f}" for of in (min, statistics.median, max))
    return median if lowest == highest else f"{median} ({lowest} to {highest})"


def command(table: Table) -> str:
    """Return what makes the page, with paths as they are on nobody's machine."""
    words = ["retinaserve model-table --output docs/model_zoo.md"]
    words += [
        f"--{each.name} {getattr(table.options, each.name):g}"
        for each in fields(Options)
        if getattr(table.options, each.name) != each.default
    ]
    trained = [
        f"--trained {name} {name}.pth {name}/images {name}/val.json {name}/train.json" for name in table.trained
    ]
    return " \\\n    ".join([" ".join(words), *trained])


def trained_line(name: str, row: Scored) -> str:
    """Return a trained detector's row."""
    spec = DetectorSpec.from_json(row.spec)
    parameters, _ = network_cost(spec)
    network = (
        spec.network.backbone if spec.network.width == 64 else f"{spec.network.backbone} / {spec.network.width}"
    )
    cells = [name, network, f"{spec.size[0]} x {spec.size[1]}", str(len(spec.classes)), f"{parameters / 1e6:.1f}"]
    cells += [
        _points(row.ap, "fp32"),
        _points(row.ap, "int8"),
        _points(row.ap50, "fp32"),
        _points(row.ap50, "int8"),
    ]
    return _line([*cells, f"{row.megabytes['fp32']:.1f}", f"{row.megabytes['int8']:.1f}", "not run"])


def _points(scores: dict[str, float | None], precision: str) -> str:
    score = scores[precision]
    return "-" if score is None else f"{100 * score:.1f}"


def _machine(table: Table) -> str:
    about, options = table.about, table.options
    rounds = "one round" if options.rounds == 1 else f"{options.rounds} rounds"
    missing = [name for name in BACKBONES if name not in table.backbones]
    return (
        f"{about['cores']} cores of {about['cpu']}, no GPU; {rounds} of {options.seconds:g} s with "
        f"{ALONE} and with {FULL} in flight; commit {about['commit']}, {about['date']}."
        + (f" Not measured yet: {', '.join(missing)}." if missing else "")
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
