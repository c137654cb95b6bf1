"""torchvision's own RetinaNet, in an environment of its own: what torchvision_speed.py is held against.

It imports torch and torchvision and nothing of ours. `weights` writes seeded weights whose scores are spread as
those of a trained detector; `answer` writes what torchvision finds in photos; `serve` times photos when it is told
to, a JSON line each way.
"""

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional

SEED, CLASSES = 7, 91
WANTED = 3e-4  # of all logits, the share above the score threshold


def detector(weights: Path | None = None) -> Any:
    """Return retinanet_resnet50_fpn as torchvision makes it: 800 to 1333, eager."""
    torch.manual_seed(SEED)
    model = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES
    ).eval()
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def decoded(path: Path) -> torch.Tensor:
    """Return a photo as torchvision's examples read it: (3, h, w), 0 to 1."""
    pixels: torch.Tensor = functional.to_tensor(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
    return pixels


@torch.no_grad()
def write_weights(target: Path, photos: list[Path]) -> None:
    """Write weights that keep the scale of what flows through, norms that have seen photos, and useful scores."""
    model = detector()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    # As in trained networks, the stem is smooth and blocks add little to what passes them: otherwise half a grey
    # level of rounding becomes a quarter of a logit's spread.
    stem = model.backbone.body.conv1.weight
    stem.copy_(3 * torch.nn.functional.avg_pool2d(stem, 5, 1, 2))
    for name, module in model.backbone.body.named_modules():
        if name.endswith("bn3"):
            module.weight.fill_(0.2)
    images = [decoded(path) for path in photos]

    def learn(norm: Any, inputs: tuple[torch.Tensor]) -> None:
        norm.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        norm.running_var.copy_(inputs[0].var(dim=(0, 2, 3)))
        norm.bias.copy_(torch.full_like(norm.bias, 0.1))

    hooks = [
        module.register_forward_pre_hook(learn)
        for module in model.backbone.body.modules()
        if isinstance(module, torch.nn.BatchNorm2d | torchvision.ops.misc.FrozenBatchNorm2d)
    ]
    batch, _ = model.transform(images)
    model.backbone(batch.tensors)
    for hook in hooks:
        hook.remove()
    features = list(model.backbone(batch.tensors).values())
    logits = model.head.classification_head(features)
    scale = float(logits.std())
    output = model.head.classification_head.cls_logits
    output.weight.mul_(1 / scale)
    output.bias.zero_()
    logits = logits / scale
    sample = logits.flatten()[:: max(1, logits.numel() // 1_000_000)]
    output.bias.fill_(-2.944 - float(sample.quantile(1 - WANTED)))  # -2.944 is the logit of 0.05
    deltas = model.head.regression_head(features)
    model.head.regression_head.bbox_reg.weight.mul_(0.2 / float(deltas.std()))
    torch.save(model.state_dict(), target)


@torch.no_grad()
def write_answers(weights: Path, photos: list[Path], target: Path) -> None:
    """Write boxes, scores and labels of each photo as JSON."""
    model, found = detector(weights), {}
    for path in photos:
        (answer,) = model([decoded(path)])
        found[path.name] = {name: values.tolist() for name, values in answer.items()}
    target.write_text(json.dumps({"torchvision": torchvision.__version__, "found": found}))


@torch.no_grad()
def serve(weights: Path, photos: list[Path]) -> None:
    """Read `eager` or `compiled` a line, and answer with the seconds that all photos took, from JPEG bytes."""
    eager = detector(weights)
    compiled = torch.compile(detector(weights), dynamic=True)
    for line in sys.stdin:
        model = compiled if line.strip() == "compiled" else eager
        started = time.perf_counter()
        for path in photos:
            model([decoded(path)])
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
        print(json.dumps({"seconds": time.perf_counter() - started, "megabytes": resident}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    what, file = sys.argv[2], Path(sys.argv[3])
    given = [Path(word) for word in sys.argv[4:]]
    if what == "weights":
        write_weights(file, given)
    elif what == "answer":
        write_answers(file, given[1:], given[0])
    else:
        serve(file, given)
