"""COCO scores of a network in torch while it is trained: pycocotools judges, as everywhere in this project.

    found = predictions(model, spec, dataset, range(len(dataset)))
    judge(dataset, spec, found).ap

Pictures are letterboxed as they are served. Reports, curves and per-class numbers are `retinaserve eval`'s.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from retinaserve.training.data.dataset import CocoDataset, letterbox
from retinaserve.training.errors import UserError
from retinaserve.training.model.postprocess import detect
from retinaserve.training.spec import DetectorSpec

BATCH = 8


@dataclass(frozen=True)
class Scores:
    """COCO's average precision over IoU 0.50:0.95, at 0.50 and at 0.75."""

    ap: float
    ap50: float
    ap75: float


@dataclass(frozen=True, eq=False)
class Found:
    """What a network found in a picture: xyxy in its upright pixels, best first."""

    index: int  # in the data set
    boxes: npt.NDArray[np.float32]  # (N, 4)
    scores: npt.NDArray[np.float32]  # (N,)
    classes: npt.NDArray[np.int32]  # (N,) of the detector's spec


def check(dataset: CocoDataset, spec: DetectorSpec) -> None:
    """Raise UserError if a data set can't judge a detector."""
    if not dataset.box_count:
        raise UserError("the validation set has no boxes to find", "annotations with iscrowd 0 are expected")
    unknown = [name for name in dataset.classes if name not in spec.classes]
    if unknown:
        raise UserError(
            f"the validation set has classes that are not trained: {', '.join(unknown)}",
            f"trained are: {', '.join(spec.classes)}",
        )


@torch.no_grad()
def predictions(
    model: nn.Module,
    spec: DetectorSpec,
    dataset: CocoDataset,
    indices: Sequence[int],
    *,
    precision: torch.dtype = torch.float32,
) -> Iterator[Found]:
    """Give what a network in eval mode finds in some pictures of a set, on the device its weights are on."""
    device = next(model.parameters()).device
    mean = 255 * torch.tensor(spec.mean, device=device).view(1, 3, 1, 1)
    std = 255 * torch.tensor(spec.std, device=device).view(1, 3, 1, 1)
    for start in range(0, len(indices), BATCH):
        some = indices[start : start + BATCH]
        pictures, hows = zip(
            *(letterbox(dataset.load(index), spec.size, spec.pad_value) for index in some), strict=True
        )
        pixels = (
            torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(device)
        )  # (B, H, W, 3) -> (B, 3, H, W)
        images = ((pixels.float() - mean) / std).contiguous()
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            heads = model(images)
        counts, *slots = detect(spec, heads, torch.from_numpy(np.stack(hows)))
        for row, index in enumerate(some):
            boxes, scores, classes = (_numpy(slot[row, : int(counts[row])]) for slot in slots)
            yield Found(index, boxes, scores, classes)


def judge(dataset: CocoDataset, spec: DetectorSpec, found: Sequence[Found]) -> Scores:
    """Score what was found in the pictures of a set; classes are matched by name."""
    from pycocotools.cocoeval import COCOeval

    truth = [
        (labels.image_id, dataset.category_ids[index], box, int(crowd), 1.0)
        for labels in dataset.labels
        for box, index, crowd in zip(labels.boxes, labels.classes, labels.crowd, strict=True)
    ]
    category = dict(zip(dataset.classes, dataset.category_ids, strict=True))
    rows = [
        (dataset.labels[each.index].image_id, category[spec.classes[index]], box, 0, float(score))
        for each in found
        for box, index, score in zip(each.boxes, each.classes, each.scores, strict=True)
        if spec.classes[index] in category
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(dataset, truth), _coco(dataset, rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50, ap75 = (float(value) for value in evaluation.stats[:3])
    return Scores(ap, ap50, ap75)


def _coco(dataset: CocoDataset, rows: Sequence[tuple[int, int, Any, int, float]]) -> Any:
    """Index rows of image, category, xyxy, crowd and score; ids count from 1, as 0 stands for no match."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": labels.image_id} for labels in dataset.labels],
        "categories": [{"id": number} for number in dataset.category_ids],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": category,
                "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
                "area": float((box[2] - box[0]) * (box[3] - box[1])),
                "iscrowd": crowd,
                "score": score,
            }
            for number, (image_id, category, box, crowd, score) in enumerate(rows, 1)
        ],
    }
    coco.createIndex()
    return coco


def _numpy(values: Tensor) -> Any:
    return values.cpu().numpy()
