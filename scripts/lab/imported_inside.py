# mypy: ignore-errors
"""Run inside an author's own environment: his RetinaNet is trained, answers images from their bytes, and is timed.

    python imported_inside.py torchvision train weights.pth IMAGES LABELS.json
    python imported_inside.py yhenon train weights.pth IMAGES LABELS.json torchvision.pth
    python imported_inside.py torchvision answer weights.pth IMAGES LABELS.json RESULTS.json
    python imported_inside.py torchvision time weights.pth PHOTO...      # eager or compiled, a line of stdin

The environment: torch==2.14.1 torchvision==0.29.1; for yhenon scikit-image, pycocotools, and on PYTHONPATH a
checkout of yhenon/pytorch-retinanet at 0348a9d. Networks are ResNet50s: torchvision's is trained from nothing on
small images; yhenon's has the same weights, as his code trains no norms. RESULTS are COCO results.
"""

import io
import json
import math
import random
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional

SIDE, LONGEST = 192, 320  # what is trained and answered at; time is taken at 800 to 1333
STEPS, BATCH, RATE, WARMUP = 200, 8, 1e-3, 50


def decoded(path):
    """Return an image as torchvision's examples read it: (3, h, w), 0 to 1."""
    return functional.to_tensor(Image.open(io.BytesIO(Path(path).read_bytes())).convert("RGB"))


def read_labels(images, labels):
    """Return (id, path, boxes xyxy with category ids in a fifth column) of each image, and the sorted ids."""
    content = json.loads(Path(labels).read_text())
    boxes = {each["id"]: [] for each in content["images"]}
    for each in content["annotations"]:
        x, y, w, h = each["bbox"]
        boxes[each["image_id"]].append((x, y, x + w, y + h, each["category_id"]))
    rows = [(each["id"], Path(images) / each["file_name"], boxes[each["id"]]) for each in content["images"]]
    return rows, sorted(each["id"] for each in content["categories"])


def samples(rows):
    """Yield batches of flipped small images, as lists of pixels and of (boxes, category ids)."""
    kept = []
    for _, path, boxes in rows:
        if boxes:
            pixels, table = decoded(path), torch.tensor(boxes)
            ratio = SIDE / min(pixels.shape[1:])
            size = [round(side * ratio) for side in pixels.shape[1:]]
            kept.append(
                (functional.resize(pixels, size, antialias=False), table[:, :4] * ratio, table[:, 4].long())
            )
    choice = random.Random(0)
    for _ in range(STEPS):
        batch = []
        for pixels, boxes, ids in choice.sample(kept, BATCH):
            boxes = boxes.clone()
            for axis in (0, 1):
                if choice.random() < 0.5:
                    pixels = pixels.flip(2 - axis)
                    boxes[:, [axis, axis + 2]] = pixels.shape[2 - axis] - boxes[:, [axis + 2, axis]]
            batch.append((pixels, boxes, ids))
        yield batch


class Torchvision:
    """retinanet_resnet50_fpn; its labels are the category ids, and 0 is the background."""

    def __init__(self, ids, weights=None, sides=(SIDE, LONGEST)):
        self.model = torchvision.models.detection.retinanet_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=max(ids) + 1, min_size=sides[0], max_size=sides[1]
        )
        if weights:
            self.model.load_state_dict(torch.load(weights, weights_only=True))
        self.model.eval()

    def train(self, rows, start):
        """Train it: AdamW, warm-up, cosine, bf16."""
        self.model.train()
        optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=1e-4)
        for step, batch in enumerate(samples(rows)):
            factor = min(1, (step + 1) / WARMUP) * (0.505 + 0.495 * math.cos(math.pi * step / STEPS))
            optimizer.param_groups[0]["lr"] = RATE * factor
            targets = [{"boxes": boxes, "labels": ids} for _, boxes, ids in batch]
            with torch.autocast("cpu", torch.bfloat16):
                loss = sum(self.model([pixels for pixels, *_ in batch], targets).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            if step % 25 == 24:
                print(f"{step + 1} of {STEPS}: {loss.item():.3f}", file=sys.stderr)

    def answer(self, path):
        """Return boxes, scores and category ids."""
        (found,) = self.model([decoded(path)])
        return (found[name].tolist() for name in ("boxes", "scores", "labels"))


class Yhenon:
    """pytorch-retinanet's resnet50, with its own Normalizer and Resizer; classes are the sorted ids."""

    def __init__(self, ids, weights=None):
        from retinanet import model

        self.ids = ids
        self.model = model.resnet50(num_classes=len(ids))
        if weights:
            self.model.load_state_dict(torch.load(weights, weights_only=True))
        self.model.eval()

    def train(self, rows, start):
        """Take the weights of torchvision's network in the file `start`."""
        self.model.load_state_dict(yhenon_of(torch.load(start, weights_only=True), self.ids))

    def answer(self, path):
        """Return boxes, scores and category ids."""
        from retinanet.dataloader import Normalizer, Resizer

        sample = {
            "img": np.array(Image.open(path).convert("RGB")).astype(np.float32) / 255,
            "annot": np.zeros((0, 5)),
        }
        sample = Resizer()(Normalizer()(sample), min_side=SIDE, max_side=LONGEST)
        scores, labels, boxes = self.model(sample["img"].permute(2, 0, 1)[None].float())
        boxes = boxes.reshape(-1, 4) / sample["scale"]
        return boxes.tolist(), scores.tolist(), [self.ids[int(each)] for each in labels]


def yhenon_of(state, ids):
    """Return torchvision's weights by yhenon's names: no background, and nothing at P6, made of another level.

    His anchors are half a stride further right and down, which is the same part of an anchor on every level.
    """
    heads = {"classification_head": "classificationModel", "regression_head": "regressionModel"}
    found = {"fpn.P6.weight": torch.zeros(256, 2048, 3, 3), "fpn.P6.bias": torch.zeros(256)}
    for name, value in state.items():
        parts = name.split(".")
        if parts[1] == "body":
            found[".".join(parts[2:])] = value
        elif parts[2] == "extra_blocks":
            found |= {f"fpn.P7_2.{parts[-1]}": value} if parts[3] == "p7" else {}
        elif parts[1] == "fpn":
            kind = {"inner_blocks": 1, "layer_blocks": 2}[parts[2]]
            found[f"fpn.P{int(parts[3]) + 3}_{kind}.{parts[5]}"] = value
        elif parts[0] == "head":
            layer = "output" if parts[2] != "conv" else f"conv{int(parts[3]) + 1}"
            found[f"{heads[parts[1]]}.{layer}.{parts[-1]}"] = value
    ratio, size = (
        torch.tensor([0.5, 1.0, 2.0]).repeat_interleave(3),
        4 * 2 ** (torch.arange(9) % 3 / 3),
    )  # in strides
    half = 0.5 / torch.stack((size / ratio.sqrt(), size * ratio.sqrt()), dim=1)  # in anchors, (9, 2)
    for part in ("weight", "bias"):
        classes, boxes = (f"{name}.output.{part}" for name in ("classificationModel", "regressionModel"))
        found[classes] = found[classes].unflatten(0, (9, -1))[:, ids].flatten(0, 1)
        deltas = found[boxes].unflatten(0, (9, 4)).clone()
        if part == "bias":
            deltas[:, :2] -= half
        scale = torch.tensor([0.1, 0.1, 0.2, 0.2]).view(1, 4, *[1] * (deltas.dim() - 2))
        found[boxes] = (deltas / scale).flatten(0, 1)
    return found


FAMILIES = {"torchvision": Torchvision, "yhenon": Yhenon}


def train(family, weights, images, labels, start=None):
    """Write the weights of a network that detects a labelled set."""
    torch.manual_seed(0)
    rows, ids = read_labels(images, labels)
    author = FAMILIES[family](ids)
    author.train(rows, start)
    torch.save(author.model.state_dict(), weights)


@torch.no_grad()
def answer(family, weights, images, labels, target):
    """Write what a network answers to each image, as COCO results."""
    rows, ids = read_labels(images, labels)
    author, found = FAMILIES[family](ids, weights), []
    for number, path, _ in rows:
        for box, score, label in zip(*author.answer(path), strict=True):
            wide, high = box[2] - box[0], box[3] - box[1]
            row = {"image_id": number, "category_id": label, "bbox": [*box[:2], wide, high], "score": score}
            found.append(row)
    Path(target).write_text(json.dumps(found))


@torch.no_grad()
def timed(family, weights, *photos):
    """Answer each line of stdin with what all photos took: seconds, CPU seconds, memory."""
    count = torch.load(weights, weights_only=True)["head.classification_head.cls_logits.bias"].numel() // 9
    eager = Torchvision([count - 1], weights, (800, 1333)).model
    models = {"eager": eager, "compiled": torch.compile(eager, dynamic=True)}
    for line in sys.stdin:
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        for path in photos:
            models[line.strip()]([decoded(path)])
        after = resource.getrusage(resource.RUSAGE_SELF)
        told = {
            "seconds": time.perf_counter() - started,
            "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "megabytes": int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6,
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    {"train": train, "answer": answer, "time": timed}[sys.argv[2]](sys.argv[1], *sys.argv[3:])
