# mypy: ignore-errors
"""Run inside the peers' own environment: train one from scratch for so many CPU minutes, export it, time it.

    python peers_inside.py train yolo11n SET.json OUT --minutes 8     # curve.json, last.pt
    python peers_inside.py export yolo11n SET.json OUT                # export.json: AP of fp32 and INT8
    python peers_inside.py time yolo11n SET.json OUT                  # ms an image, JSON on stdout

SET.json: name, side, canvas (h, w of the exported graph), and of train and val the images' folder and COCO file.
Nothing of ours is imported, and nothing of theirs is copied. CPU minutes are the process's own, of all its
threads, without what scoring takes.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import math
import shutil
import time
import types
from pathlib import Path

import cv2
import numpy as np
import torch

FIRST, GROWTH = 0.5, 1.35  # CPU minutes to the first score, and from each to the next
LOWEST, KEPT = 0.001, 100  # scores and detections that AP is counted from, as Ultralytics' own val does
SHOWN, IOU = 0.05, 0.7  # the lowest score of a timed answer, as ours; Ultralytics' IoU
WARM, TIMED = 20, 87
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}  # INT8 leaves what is not quantized in bf16, as ours


class Clock:
    """CPU seconds of training: `pause` leaves out what runs inside."""

    def __init__(self):
        self.left_out = time.process_time()

    def __call__(self):
        """Return the seconds so far."""
        return time.process_time() - self.left_out

    @contextlib.contextmanager
    def pause(self):
        """Leave out what runs inside."""
        started = time.process_time()
        yield
        self.left_out += time.process_time() - started


class Curve:
    """AP over CPU minutes, scored by pycocotools as training goes on; kept in OUT/curve.json."""

    def __init__(self, out, data, clock):
        self.path, self.data, self.clock = out / "curve.json", data, clock
        self.points, self.next = [], FIRST * 60

    def due(self):
        """Return whether it is time for a score."""
        return self.clock() >= self.next

    def add(self, detect, **more):
        """Score, and keep the point."""
        with self.clock.pause():
            minutes = self.clock() / 60
            self.points.append({"minutes": round(minutes, 3), **score(self.data, detect), **more})
            self.next = minutes * 60 * GROWTH
            print(json.dumps(self.points[-1]), flush=True)
            self.path.write_text(json.dumps({"points": self.points, "versions": versions()}, indent=1))


def versions():
    """Return what stands in the table."""
    names = ("torch", "ultralytics", "transformers", "openvino", "nncf", "pycocotools")
    return {name: importlib.metadata.version(name) for name in names}


def score(data, detect):
    """Return AP and AP50 by pycocotools; detect(image BGR) -> boxes xyxy, scores, category ids."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(data["val"]["annotations"])
        for key, image in truth.imgs.items():
            found = detect(cv2.imread(str(Path(data["val"]["images"]) / image["file_name"])))
            for (x1, y1, x2, y2), value, category in zip(*found, strict=True):
                box = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
                rows.append({"image_id": key, "category_id": category, "bbox": box, "score": float(value)})
        if not rows:
            return {"ap": 0.0, "ap50": 0.0}
        judge = COCOeval(truth, truth.loadRes(rows), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {"ap": round(float(judge.stats[0]), 4), "ap50": round(float(judge.stats[1]), 4)}


def compiled(path, precision):
    """Return a function of pixels (1, 3, h, w) float, on one thread of OpenVINO."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = PRECISIONS[precision]
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda pixels: request.infer([pixels])[0]


class Yolo:
    """Ultralytics' YOLO11n (AGPL-3.0) with its own defaults, but for what makes more of few minutes on a CPU.

    A step every batch of 16 instead of every 64 images; bf16 and channels-last, which its trainer has for GPUs
    only: 1.9 times the images a second. `--plain` leaves these out.
    """

    def __init__(self, data, out):
        self.data, self.out = data, out
        found = json.loads(Path(data["train"]["annotations"]).read_text())["categories"]
        self.ids = [each["id"] for each in found]

    def labels(self):
        """Write the data set as Ultralytics reads it."""
        root = self.out / "data"
        shutil.rmtree(root, ignore_errors=True)
        for part in ("train", "val"):
            coco = json.loads(Path(self.data[part]["annotations"]).read_text())
            lines = {image["id"]: [] for image in coco["images"]}
            sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
            for box in coco["annotations"]:
                (x, y, w, h), (width, height) = box["bbox"], sizes[box["image_id"]]
                place = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
                lines[box["image_id"]].append(" ".join(map(str, [self.ids.index(box["category_id"]), *place])))
            for kind in ("images", "labels"):
                (root / kind / part).mkdir(parents=True)
            for image in coco["images"]:
                name = root / "images" / part / image["file_name"]
                name.symlink_to(Path(self.data[part]["images"]).resolve() / image["file_name"])
                label = (root / "labels" / part / name.name).with_suffix(".txt")
                label.write_text("\n".join(lines[image["id"]]))
        names = {place: str(key) for place, key in enumerate(self.ids)}
        described = {"path": str(root.resolve()), "train": "images/train", "val": "images/val", "names": names}
        (self.out / "data.yaml").write_text(json.dumps(described))
        return str(self.out / "data.yaml")

    def pixels(self, image, shape=None):
        """Return an image letterboxed, (1, 3, h, w) in 0..1."""
        from ultralytics.data.augment import LetterBox

        side = self.data["side"]
        padded = LetterBox(shape or (side, side), auto=shape is None, stride=32)(image=image)
        return torch.from_numpy(padded[:, :, ::-1].transpose(2, 0, 1).copy()).float()[None] / 255

    def suppress(self, raw, lowest):
        """Return (N, 6): box, score, class, by Ultralytics' own NMS."""
        from ultralytics.utils.nms import non_max_suppression

        multi = lowest == LOWEST  # several classes of a box, as its own val
        return non_max_suppression(torch.as_tensor(raw), lowest, IOU, multi_label=multi, max_det=300)[0]

    def detect_with(self, network, image, shape=None):
        """Return boxes, scores and category ids of an image."""
        from ultralytics.utils.ops import scale_boxes

        pixels = self.pixels(image, shape)
        found = self.suppress(network(pixels), LOWEST)
        boxes = scale_boxes(pixels.shape[2:], found[:, :4].clone(), image.shape[:2])
        order = np.argsort(-found[:, 4].numpy())[:KEPT]
        return boxes[order].numpy(), found[order, 4].numpy(), [self.ids[int(c)] for c in found[order, 5]]

    def train(self, minutes, plain):
        """Train by its own trainer, whose timed schedule (`time`, epochs fitted to it) goes by CPU time here."""
        import ultralytics.engine.trainer as trainer_module
        from ultralytics import YOLO

        clock = Clock()
        curve = Curve(self.out, self.data, clock)
        trainer_module.time = types.SimpleNamespace(time=clock)
        if not plain:
            trainer_module.autocast = lambda *_, **__: torch.autocast("cpu", torch.bfloat16)

        def started(trainer):
            trainer.validate = lambda: ({}, 0.0)  # scored by pycocotools instead
            trainer.final_eval = lambda: None
            if not plain:
                prepare = trainer.preprocess_batch
                trainer.model.to(memory_format=torch.channels_last)

                def preprocess_batch(batch):
                    batch = prepare(batch)
                    return batch | {"img": batch["img"].to(memory_format=torch.channels_last)}

                trainer.preprocess_batch = preprocess_batch
            clock.left_out = time.process_time()

        @torch.inference_mode()
        def scored(trainer):
            if trainer.stop or curve.due():
                model = trainer.ema.ema.eval()
                curve.add(lambda image: self.detect_with(model, image), epoch=trainer.epoch + 1)

        model = YOLO("yolo11n.yaml")
        model.add_callback("on_train_start", started)
        model.add_callback("on_fit_epoch_end", scored)
        settings = {"imgsz": self.data["side"], "batch": 16, "time": minutes / 60, "device": "cpu", "seed": 0}
        settings |= {} if plain else {"nbs": 16}
        settings |= {"workers": 0, "cache": "ram", "pretrained": False, "plots": False, "val": False}
        settings |= {"project": str(self.out.resolve()), "name": "run", "exist_ok": True}
        model.train(data=self.labels(), **settings)
        shutil.copy(self.out / "run/weights/last.pt", self.out / "last.pt")

    def export(self):
        """Export to OpenVINO by its own verb, INT8 by NNCF on the training images, each with NMS and without."""
        from ultralytics import YOLO

        canvas, told = self.data["canvas"], {"versions": versions()}
        for name, kind in (("fp32", {}), ("int8", {"quantize": 8, "data": self.labels(), "split": "train"})):
            for nms in (True, False):
                more = {"nms": True, "conf": SHOWN, "iou": IOU, "max_det": KEPT} if nms else {}
                made = YOLO(self.out / "last.pt").export(format="openvino", imgsz=canvas, **kind, **more)
                place = self.out / f"{name}{'_nms' if nms else ''}"
                shutil.rmtree(place, ignore_errors=True)
                shutil.move(made, place)
            run = compiled(self.graph(name), name)
            told[name] = score(self.data, lambda image, run=run: self.detect_with(run, image, tuple(canvas)))
        (self.out / "export.json").write_text(json.dumps(told, indent=1))

    def graph(self, name):
        """Return the exported graph's path."""
        return str(next((self.out / name).glob("*.xml")))

    def ways(self):
        """Yield what is timed: precision, how boxes come, and a function of an image's pixels."""
        for precision in PRECISIONS:
            name = "int8" if precision == "int8" else "fp32"
            run, whole = compiled(self.graph(name), precision), compiled(self.graph(f"{name}_nms"), precision)
            yield precision, "network alone", run
            yield precision, "its NMS in torch", lambda pixels, run=run: self.suppress(run(pixels), SHOWN)
            yield precision, "its NMS in the graph", whole

    def time(self):
        """Print CPU milliseconds an image, letterboxing left out: the median over validation images."""
        images = json.loads(Path(self.data["val"]["annotations"]).read_text())["images"][:TIMED]
        files = [str(Path(self.data["val"]["images"]) / image["file_name"]) for image in images]
        inputs = [self.pixels(cv2.imread(file), tuple(self.data["canvas"])).numpy() for file in files]
        told = []
        for precision, how, run in self.ways():
            taken = []
            for pixels in [*inputs[:WARM], *inputs]:
                started = time.process_time()
                run(pixels)
                taken.append(time.process_time() - started)
            told.append([precision, how, round(1000 * float(np.median(taken[WARM:])), 3)])
        print(json.dumps(told))


class Dfine(Yolo):
    """D-FINE-N as transformers has it (Apache-2.0), with the published sizes of its nano, from random weights."""

    def __init__(self, data, out):
        super().__init__(data, out)
        from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

        torch.manual_seed(0)
        b0 = HGNetV2Config(
            stem_channels=[3, 16, 16],
            stage_in_channels=[16, 64, 256, 512],
            stage_mid_channels=[16, 32, 64, 128],
            stage_out_channels=[64, 256, 512, 1024],
            stage_num_blocks=[1, 1, 2, 1],
            stage_numb_of_layers=[3, 3, 3, 3],
            hidden_sizes=[64, 256, 512, 1024],
            depths=[1, 1, 2, 1],
            use_learnable_affine_block=True,
            out_indices=[3, 4],
        )
        config = DFineConfig(
            backbone_config=b0,
            freeze_backbone_batch_norms=False,
            encoder_in_channels=[512, 1024],
            feat_strides=[16, 32],
            encoder_hidden_dim=128,
            encoder_ffn_dim=512,
            encode_proj_layers=[1],
            hidden_expansion=0.34,
            depth_mult=0.5,
            d_model=128,
            decoder_in_channels=[128, 128],
            decoder_ffn_dim=512,
            num_feature_levels=2,
            decoder_layers=3,
            decoder_n_points=[6, 6],
            num_labels=len(self.ids),
        )
        self.model = DFineForObjectDetection(config)

    def batch(self, rng, images, boxes, size=8):
        """Return pixels and labels of random images: mirrored, cut at random; only whole boxes count."""
        height, width = self.data["canvas"]
        pixels, labels = [], []
        for place in rng.integers(0, len(images), size):
            image, (rows, kinds) = images[place], boxes[place]
            h, w = image.shape[:2]
            part = rng.uniform(0.6, 1.0)
            x, y = int(rng.uniform(0, 1 - part) * w), int(rng.uniform(0, 1 - part) * h)
            cut = image[y : y + int(part * h), x : x + int(part * w)]
            scaled = (rows - [x, y, x, y]) / np.tile(cut.shape[1::-1], 2)
            whole = ((scaled >= 0) & (scaled <= 1)).all(axis=1)
            (x1, y1, x2, y2), kept, shown = scaled[whole].T, kinds[whole], cv2.resize(cut, (width, height))
            if rng.random() < 0.5:
                shown, x1, x2 = shown[:, ::-1], 1 - x2, 1 - x1
            pixels.append(shown[:, :, ::-1].transpose(2, 0, 1).astype(np.float32) / 255)
            middle = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1).astype(np.float32)
            labels.append({"class_labels": torch.tensor(kept), "boxes": torch.from_numpy(middle)})
        return torch.from_numpy(np.stack(pixels)), labels

    def detect(self, model, image):
        """Return the best boxes of the queries' classes; a DETR has no NMS."""
        height, width = self.data["canvas"]
        pixels = cv2.resize(image, (width, height))[:, :, ::-1].transpose(2, 0, 1).astype(np.float32) / 255
        told = model(pixel_values=torch.from_numpy(pixels[None]))
        scores, best = told.logits[0].float().sigmoid().flatten().topk(KEPT)
        x, y, w, h = told.pred_boxes[0].float()[best // len(self.ids)].numpy().T
        boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1) * np.tile(image.shape[1::-1], 2)
        return boxes, scores.numpy(), [self.ids[int(place) % len(self.ids)] for place in best]

    def train(self, minutes, plain):
        """AdamW at D-FINE's own rates for its nano by batch size, cosine, an average of the weights, fp32."""
        coco = json.loads(Path(self.data["train"]["annotations"]).read_text())
        images = [
            cv2.imread(str(Path(self.data["train"]["images"]) / each["file_name"])) for each in coco["images"]
        ]
        boxes = []
        for each in coco["images"]:
            mine = [box for box in coco["annotations"] if box["image_id"] == each["id"]]
            rows = np.array([box["bbox"] for box in mine], float).reshape(-1, 4)
            kinds = np.array([self.ids.index(box["category_id"]) for box in mine], np.int64)
            boxes.append((np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:]]), kinds))
        rng, optimizer = (
            np.random.default_rng(0),
            torch.optim.AdamW(self.model.parameters(), 4e-4, weight_decay=1e-4),
        )
        average = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True
        )
        clock, step = Clock(), 0
        curve = Curve(self.out, self.data, clock)
        while clock() < minutes * 60:
            for group in optimizer.param_groups:
                group["lr"] = 4e-4 * min(1, (step + 1) / 50) * (1 + math.cos(math.pi * clock() / minutes / 60)) / 2
            pixels, labels = self.batch(rng, images, boxes)
            self.model.train()
            loss = self.model(pixel_values=pixels, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(self.model)
            step += 1
            if curve.due() or clock() >= minutes * 60:
                with torch.inference_mode():
                    curve.add(
                        lambda image: self.detect(average.module.eval(), image), steps=step, loss=float(loss)
                    )


PEERS = {"yolo11n": Yolo, "dfine-n": Dfine}


def main():
    """Do one step of one peer."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("step", choices=("train", "export", "time"))
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--plain", action="store_true", help="The peer as it comes.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    peer = PEERS[given.peer](json.loads(given.data.read_text()), given.out)
    if given.step == "train":
        peer.train(given.minutes, given.plain)
    else:
        getattr(peer, given.step)()


if __name__ == "__main__":
    main()
