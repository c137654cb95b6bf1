# mypy: ignore-errors
"""Run inside an author's own environment: his RetinaNet is made, answers images from their bytes, and is timed.

    python imported_inside.py torchvision train weights.pth IMAGES LABELS.json
    python imported_inside.py detectron2 new model.pth LABELS.json
    python imported_inside.py detectron2 answer model.pth IMAGES LABELS.json RESULTS.json
    python imported_inside.py torchvision time weights.pth eager PHOTO...     # a turn for each line of stdin

The environment: torch==2.14.1 torchvision==0.29.1, and what authors_inside.py names, the sources on PYTHONPATH.
torchvision's network is trained from nothing on small images; the others are `new`, with seeded weights in the
author's own file. RESULTS are COCO results, of the author's own pipeline with nothing changed but the sides.
"""

import io
import json
import math
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from authors_inside import seeded
from authors_load import load_deepforest, load_fizyr, load_mlperf, load_mmdetection, load_odtk
from PIL import Image

try:
    import torch
    import torchvision
    from torchvision.transforms import functional
except ImportError:  # in fizyr's environment
    torch = None

SIDE, LONGEST = map(int, os.environ.get("SIZE", "192 320").split())  # time is taken at 800 to 1333
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

    def train(self, rows):
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


class Deepforest:
    """DeepForest's RetinaNetHub, of a Hugging Face folder and a checkpoint, by predict_file."""

    def __init__(self, ids, weights=None):
        from deepforest.main import deepforest

        self.hub, self.make, self.ids = load_deepforest(), deepforest, ids
        if weights:
            self.main = deepforest.load_from_checkpoint(weights, map_location="cpu", weights_only=False)
            self.main.create_trainer(logger=False, enable_progress_bar=False, enable_model_summary=False)

    def save(self, path, names, start):
        """Write its folder of torchvision's weights without the background, and the checkpoint of a run of it."""
        state = torch.load(start, weights_only=True)
        for name in ("head.classification_head.cls_logits.weight", "head.classification_head.cls_logits.bias"):
            value = state[name]
            state[name] = value.view(9, -1, *value.shape[1:])[:, self.ids].flatten(0, 1)
        labels = {name: place for place, name in enumerate(names)}
        words = {"score_thresh": 0.1, "label_dict": labels, "min_size": SIDE, "max_size": LONGEST}
        model = self.hub(num_classes=len(labels), **words)
        model.load_state_dict(state)
        folder = path.with_suffix("")
        model.save_pretrained(folder)
        settings = {"model": {"name": str(folder)}, "accelerator": "cpu", "workers": 0, "log_root": str(folder)}
        self.main = self.make(config_args={**settings, "label_dict": labels, "num_classes": len(labels)})
        blank = folder / "blank.png"
        Image.new("RGB", (LONGEST, SIDE)).save(blank)
        self.listed(blank)  # without a run Lightning saves nothing
        self.main.save_model(path)

    def listed(self, path):
        """Return its table of an image's boxes."""
        with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
            file.write(f"image_path,xmin,ymin,xmax,ymax,label\n{path.name},0,0,1,1,any\n")
            file.flush()
            return self.main.predict_file(file.name, str(path.parent))

    def answer(self, path, predict=None):
        """Return boxes, scores and category ids."""
        found = (predict or self.listed)(path)
        if found is None or found.empty:
            return [], [], []
        boxes = found[["xmin", "ymin", "xmax", "ymax"]].values.tolist()
        places = [self.main.label_dict.get(each, each) for each in found.label]  # names, or numbers
        return boxes, found.score.tolist(), [self.ids[int(place)] for place in places]


class DeepforestImage(Deepforest):
    """The same by predict_image."""

    def answer(self, path):
        """Return boxes, scores and category ids."""
        return super().answer(path, lambda path: self.main.predict_image(path=str(path)))


class Mlperf(Torchvision):
    """The reference's ResNeXt50, of images stretched to a square; its labels are the category ids."""

    def __init__(self, ids, weights=None):
        self.model = load_mlperf()(
            "resnext50_32x4d", num_classes=len(ids), image_size=[SIDE, SIDE], pretrained_backbone=False
        )
        if weights:
            self.model.load_state_dict(torch.load(weights, weights_only=True)["model"])
        self.model.eval()

    def save(self, path, names):
        """Write what its train.py writes of the network."""
        torch.save({"model": seeded_state(self.model)}, path)


class Detectron2:
    """R50-FPN as the model zoo configures it, by DefaultPredictor."""

    def __init__(self, ids, weights=None):
        import detectron2
        from detectron2.config import get_cfg
        from detectron2.engine import DefaultPredictor

        self.cfg = get_cfg()
        configs = Path(detectron2.__file__).parents[1] / "configs"
        self.cfg.merge_from_file(configs / "COCO-Detection/retinanet_R_50_FPN_1x.yaml")
        self.cfg.MODEL.DEVICE, self.cfg.MODEL.WEIGHTS = "cpu", str(weights or "")
        self.cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False  # as in torchvision's weights, which this starts from
        self.cfg.MODEL.RETINANET.NUM_CLASSES = len(ids)
        self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST = SIDE, LONGEST
        self.predictor = DefaultPredictor(self.cfg)
        self.model, self.ids = self.predictor.model, ids

    def save(self, path, names):
        """Write what DefaultTrainer writes, and its config beside it."""
        torch.save({"model": seeded_state(self.model)}, path)
        path.with_name("config.yaml").write_text(self.cfg.dump())

    def answer(self, path):
        """Return boxes, scores and category ids."""
        from detectron2.data.detection_utils import read_image

        found = self.predictor(read_image(path, "BGR"))["instances"]
        return found.pred_boxes.tensor.tolist(), found.scores.tolist(), [self.ids[i] for i in found.pred_classes]


class Mmdetection:
    """R50-FPN as its config has it, by inference_detector."""

    def __init__(self, ids, weights=None):
        load_mmdetection()
        import mmdet
        from mmdet.apis import init_detector
        from mmengine import Config

        configs = Path(mmdet.__file__).parent / ".mim/configs/retinanet"
        self.cfg = Config.fromfile(configs / "retinanet_r50_fpn_1x_coco.py")
        self.cfg.model.backbone.init_cfg, self.cfg.model.bbox_head.num_classes = None, len(ids)
        self.cfg.test_dataloader.dataset.pipeline[1].scale = LONGEST, SIDE
        self.model, self.ids = init_detector(self.cfg, weights and str(weights), "none", "cpu"), ids

    def save(self, path, names):
        """Write what its runner writes."""
        meta = {"cfg": self.cfg.pretty_text, "dataset_meta": {"classes": names}}
        torch.save({"meta": meta, "state_dict": seeded_state(self.model)}, path)

    def answer(self, path):
        """Return boxes, scores and category ids."""
        from mmdet.apis import inference_detector

        found = inference_detector(self.model, str(path)).pred_instances
        return found.bboxes.tolist(), found.scores.tolist(), [self.ids[i] for i in found.labels]


class Yhenon:
    """resnet50, with its own Normalizer and Resizer; classes are the sorted ids."""

    def __init__(self, ids, weights=None):
        from retinanet import model

        self.ids = ids
        self.model = model.resnet50(num_classes=len(ids))
        if weights:
            self.model.load_state_dict(torch.load(weights, weights_only=True))
        self.model.eval()

    def save(self, path, names):
        """Write a state dict."""
        torch.save(seeded_state(self.model), path)

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


class Odtk:
    """ResNet50FPN with its own data set, decode and NMS of a CPU; classes are the sorted ids."""

    def __init__(self, ids, weights=None):
        self.parts, self.ids = load_odtk("data", "model"), ids
        make = self.parts[1].Model
        self.model = make.load(weights)[0] if weights else make(classes=len(ids))
        self.model.eval()

    def save(self, path, names):
        """Write what its training does."""
        self.model.load_state_dict(seeded_state(self.model))
        self.model.save({"path": path})

    def answer(self, path):
        """Return boxes, scores and category ids: infer.py's, a pixel of the image wider."""
        path = Path(path)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as labels:
            json.dump({"images": [{"id": 1, "file_name": path.name}], "annotations": []}, labels)
            labels.flush()
            images = self.parts[0].CocoDataset(path.parent, SIDE, LONGEST, self.model.stride, labels.name)
        pixels, _, ratio = images[0]
        scores, boxes, classes = (each[0] for each in self.model(pixels[None]))
        found = scores > 0
        boxes = boxes[found] / ratio + torch.tensor([0, 0, 1, 1])
        return boxes.tolist(), scores[found].tolist(), [self.ids[int(each)] for each in classes[found]]


class Fizyr:
    """resnet50, converted, with its own reading, mean and resize; classes are the sorted ids."""

    def __init__(self, ids, weights=None):
        models = load_fizyr()
        self.ids = ids
        self.model = models.backbone("resnet50").retinanet(num_classes=len(ids))
        if weights:
            self.model = models.convert_model(models.load_model(weights))

    def save(self, path, names):
        """Write what Keras' checkpoints are."""
        import h5py

        self.model.save(path)
        with h5py.File(path, "r+") as file:
            found = {}
            file["model_weights"].visititems(found.__setitem__)
            for name, item in found.items():
                if isinstance(item, h5py.Dataset):
                    item[...] = seeded(name, item.shape)

    def answer(self, path):
        """Return boxes, scores and category ids."""
        from keras_retinanet.utils import image

        pixels, scale = image.resize_image(image.preprocess_image(image.read_image_bgr(path)), SIDE, LONGEST)
        boxes, scores, labels = (each[0] for each in self.model.predict_on_batch(pixels[None]))
        found = labels >= 0
        ids = [self.ids[each] for each in labels[found]]
        return (boxes[found] / scale).tolist(), scores[found].tolist(), ids


def seeded_state(model):
    """Return weights for a network of torch."""
    return {name: torch.from_numpy(seeded(name, value.shape)) for name, value in model.state_dict().items()}


FAMILIES = {
    "torchvision": Torchvision,
    "deepforest": Deepforest,
    "deepforest_image": DeepforestImage,
    "detectron2": Detectron2,
    "mmdetection": Mmdetection,
    "yhenon": Yhenon,
    "fizyr": Fizyr,
    "mlperf": Mlperf,
    "odtk": Odtk,
}


def train(family, weights, images, labels):
    """Write the weights of a network that detects a labelled set."""
    torch.manual_seed(0)
    rows, ids = read_labels(images, labels)
    author = FAMILIES[family](ids)
    author.train(rows)
    torch.save(author.model.state_dict(), weights)


def new(family, weights, labels, *start):
    """Write the author's own file of a network for the labels' categories: of seeded weights, or torchvision's."""
    categories = json.loads(Path(labels).read_text())["categories"]
    names = {each["id"]: each["name"] for each in sorted(categories, key=lambda each: each["id"])}
    FAMILIES[family](list(names)).save(Path(weights), list(names.values()), *start)


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


def timed(family, weights, way, *photos):
    """Answer each line of stdin with what all photos took: seconds, CPU seconds, memory.

    Compiled are backbone and heads, for each orientation's size; what lies around them has loops over images. With
    TORCHINDUCTOR_CACHE_DIR a second process takes from there what the first has compiled.
    """
    count = torch.load(weights, weights_only=True)["head.classification_head.cls_logits.bias"].numel() // 9
    model = Torchvision([count - 1], weights, (800, 1333)).model
    for part in () if way == "eager" else ("backbone", "head"):
        options = {"freezing": True} if way == "frozen" else None
        setattr(model, part, torch.compile(getattr(model, part), dynamic=False, options=options))
    for _ in sys.stdin:
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        for path in photos:
            model([decoded(path)])
        after = resource.getrusage(resource.RUSAGE_SELF)
        told = {
            "seconds": time.perf_counter() - started,
            "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "megabytes": int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6,
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    if torch:
        torch.set_grad_enabled(sys.argv[2] == "train")
    {"train": train, "new": new, "answer": answer, "time": timed}[sys.argv[2]](sys.argv[1], *sys.argv[3:])
