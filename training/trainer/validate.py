"""COCO scores of a network in torch while it is trained.

    found = predict(model, spec, dataset, range(len(dataset)))      # {image id: Detections}
    score(dataset, spec, found).ap

Images are resized as they are served. Reports, curves and per-class numbers are `retinaserve eval`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from retinaserve.plugins import reference
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.detections import Detections
from retinaserve.training.errors import UserError
from retinaserve.training.images.letterbox import letterbox
from retinaserve.training.pixels import Decoding
from retinaserve.training.scoring.bootstrap import margin
from retinaserve.training.scoring.scores import evaluate, match_classes
from retinaserve.training.spec import DetectorSpec

BATCH = 8
FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]


def detect(
    spec: DetectorSpec, heads: Sequence[tuple[Tensor, Tensor]], letterbox: FloatArray
) -> tuple[IntArray, FloatArray, FloatArray, IntArray]:
    """Return num_detections (B, 1), boxes (B, K, 4), scores (B, K) and classes (B, K), zeros behind the last.

    heads: (logits, deltas) per level, as spec.head_names describes them; letterbox: (B, 4) original h, w, resized
    h, w. Boxes are in pixels of the original image.
    """
    threshold, topk = spec.score_threshold_logit, spec.topk_candidates
    best = [_best(logits.detach().float(), threshold, topk) for logits, _ in heads]
    deltas = [deltas.detach().float().cpu().numpy() for _, deltas in heads]
    ends = spec.ends(letterbox)
    candidates = reference.decode(best, deltas, ends, **spec.decoding)
    return reference.nms(*candidates, ends, iou=spec.nms_iou, max_detections=spec.max_detections)


def _best(logits: Tensor, threshold: float, topk: int) -> FloatArray:
    """Return a level's logits on the host, with -inf for what can't be a candidate: few are copied and sorted."""
    host = np.full(tuple(logits.shape), -np.inf, np.float32)
    for row, flat in zip(logits.flatten(1), host.reshape(len(host), -1), strict=True):
        index = (row >= threshold).nonzero()[:, 0]
        values = row[index]
        if len(values) > topk:  # equal ones all stay: the reference decides which are taken
            kept = values >= values.topk(topk).values[-1]
            index, values = index[kept], values[kept]
        flat[index.cpu().numpy()] = values.cpu().numpy()
    return host


@dataclass(frozen=True)
class Scores:
    """COCO's average precision over IoU 0.50:0.95, at 0.50 and at 0.75; `ap_margin` is bootstrap's, of `ap`."""

    ap: float
    ap50: float
    ap75: float
    ap_margin: float | None = None


def check(dataset: CocoDataset, spec: DetectorSpec) -> None:
    """Raise UserError if a data set can't score a detector."""
    if not dataset.box_count:
        problem = "the validation set has no boxes to find [no-boxes]"
        raise UserError(problem, "annotations with iscrowd 0 are expected")
    if not set(dataset.classes) & set(spec.classes):
        raise UserError(
            f"no class of the validation set is trained [split-disjoint]: {', '.join(dataset.classes)}",
            f"trained are: {', '.join(spec.classes)}",
        )


@torch.no_grad()
def predict(
    model: nn.Module,
    spec: DetectorSpec,
    dataset: CocoDataset,
    indices: Sequence[int],
    *,
    precision: torch.dtype = torch.float32,
    full_decode: bool = False,
) -> dict[int, Detections]:
    """Return what a network in eval mode finds in some images of a set, by image id.

    It runs on the device that its weights are on.
    """
    device = next(model.parameters()).device
    mean = 255 * torch.tensor(spec.mean, device=device).view(1, 3, 1, 1)
    std = 255 * torch.tensor(spec.std, device=device).view(1, 3, 1, 1)
    decoding = Decoding(full=full_decode, value_range=spec.value_range)
    found = {}
    batch = BATCH if spec.resizing.fixed else 1  # as it is served: each image on a canvas of its own size
    for start in range(0, len(indices), batch):
        some = indices[start : start + batch]
        sources = (dataset.open(index, decoding) for index in some)
        seen = (letterbox(source, spec.size, spec.pad_value, spec.resizing) for source in sources)
        pixels, letterboxes = zip(*seen, strict=True)
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(device)  # (B, H, W, 3) -> (B, 3, H, W)
        images = ((images.float() - mean) / std).contiguous()
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            heads = model(images)
        for index, count, *rest in zip(some, *detect(spec, heads, np.stack(letterboxes)), strict=True):
            found[dataset.labels[index].image_id] = Detections.from_slots(count.item(), *rest)
    return found


def score(dataset: CocoDataset, spec: DetectorSpec, found: Mapping[int, Detections]) -> Scores:
    """Score what was found in the images of a set that `check` has passed; classes are matched by name."""
    scores = evaluate(dataset.truth, found, match_classes(spec.classes, dataset.truth.categories).category_ids)
    return Scores(scores.ap or 0.0, scores.ap50 or 0.0, scores.ap75 or 0.0, margin(scores.matches))
