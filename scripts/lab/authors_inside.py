# mypy: ignore-errors
"""Run inside an author's own environment: seeded weights, his network and his post-processing, what he answers.

    python authors_inside.py detectron2 out.json.gz [SOURCE...]

The environments, each of its own, with torch 2.13 where nothing else is said:

    torchvision    pip install torchvision==0.28.0
    deepforest     pip install deepforest==2.1.0
    mlperf         torchvision's; SOURCE is retired_benchmarks/retinanet/ssd of mlcommons/training at aa344c7
    detectron2     torchvision's, and fvcore omegaconf hydra-core pycocotools; SOURCE is its repository at 02b5c4e
    mmdetection    torchvision's, and mmdet==3.3.0 mmengine==0.10.7; SOURCE is mmcv's repository at a8073c7
    yhenon         torchvision's, and scikit-image; SOURCE is yhenon/pytorch-retinanet at 0348a9d
    odtk           torchvision's, and pycocotools requests; SOURCE is NVIDIA/retinanet-examples at 65e6310
    fizyr          tensorflow-cpu==2.15.1 keras-resnet==0.2.0; SOURCE is fizyr/keras-retinanet at 7ac91df

Beside numpy it imports the author's packages alone. The tests make the same weights and images by `seeded` and
`image_of`. SOURCE are folders with checked out sources, put in front of sys.path. What is not the author's own
is in authors_load.py; besides, weights are seeded, outputs scaled so that scores are spread, and no image resized.
"""

import gzip
import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np

SEED = 17
SIZES = ((256, 384), (224, 352))  # multiples of the largest stride, and only of 32
BEST, LOWEST = 300, math.log(0.05 / 0.95)
MOST = 120  # detections recorded an image
TAPS = {
    "mobile": ("mobilenet_v2", (6, 13, 17), [32, 96, 320]),
    "mobile3": ("mobilenet_v3_large", (6, 12, 16), [40, 112, 960]),
    "efficient": ("efficientnet_b0", (3, 5, 8), [40, 112, 1280]),
}
TORCHVISION = ("head.classification_head.cls_logits", "head.regression_head.bbox_reg")


def seeded(name, shape, tuned=None):
    """Return the values of a parameter: by its name and shape alone, in float32."""
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    shape = tuple(shape)
    if "num_batches_tracked" in name:
        return np.zeros(shape, np.int64)
    if len(shape) == 4:
        fan = np.prod(shape[:3]) if name.endswith("kernel:0") else np.prod(shape[1:])
        value = rng.standard_normal(shape) * math.sqrt(2 / fan)
    elif any(word in name for word in ("var", "variance")):
        value = rng.uniform(0.8, 1.5, shape)
    elif name.endswith(("bias", "beta:0", "bias:0", "mean", "mean:0")):
        value = rng.uniform(-0.2, 0.2, shape)
    else:
        value = rng.uniform(0.4, 0.8, shape)
    for layer, (scale, shift) in (tuned or {}).items():
        if name.startswith(layer + (".", "/")[name.startswith(layer + "/")]):
            value = value * scale + (shift if name.endswith(("bias", "bias:0")) else 0)
    return value.astype(np.float32)


def image_of(size, seed=0):
    """Return pixels (H, W, 3) uint8 RGB of blocks of colour."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 256, (-(-size[0] // 16), -(-size[1] // 16), 3))
    return np.kron(low, np.ones((16, 16, 1))).astype(np.uint8)[: size[0], : size[1]]


def main(name, output, *sources):
    """Write what one author's network answers."""
    sys.path[:0] = sources
    result = AUTHORS[name]()
    with gzip.GzipFile(output, "wb", mtime=0) as file:
        file.write(json.dumps(result, separators=(",", ":")).encode())
    print(name, result["versions"], [len(case["scores"]) for case in result["cases"]], Path(output).stat().st_size)


def recorded(shapes, tuned, answers, **more):
    """Return what a test needs: names and shapes, the outputs' scales, and the answers."""
    cases = []
    for size, boxes, scores, labels in answers:
        order = np.argsort(-np.asarray(scores), kind="stable")[:MOST]
        cases.append(
            {
                "size": list(size),
                "boxes": np.round(np.asarray(boxes, np.float64)[order], 3).tolist(),
                "scores": np.round(np.asarray(scores, np.float64)[order], 6).tolist(),
                "labels": np.asarray(labels)[order].tolist(),
            }
        )
    return {"shapes": shapes, "tuned": tuned, "cases": cases, **more}


def scales(logits, deltas, spread=0.3):
    """Return the scale and shift of both outputs, so that some hundred detections of every score come out."""
    best = np.sort(np.concatenate([each.ravel() for each in logits]))[::-1][:BEST]
    scale = 4 / float(best[0] - best[-1])
    return (scale, LOWEST - scale * float(best[-1])), (
        spread / float(np.std(np.concatenate([d.ravel() for d in deltas]))),
        0.0,
    )


def run_torch(model, layers, infer, *, versions, spread=0.3, **more):
    """Seed a module of torch, tune its outputs, and record what `infer(model, image)` answers.

    layers: the names of the class and of the box output.
    """
    import torch

    model.eval()
    names = {name: tuple(value.shape) for name, value in model.state_dict().items()}

    def load(tuned):
        state = {name: torch.from_numpy(seeded(name, shape, tuned)) for name, shape in names.items()}
        model.load_state_dict(state)

    load({})
    caught = {layer: [] for layer in layers}
    modules = dict(model.named_modules())
    hooks = [
        modules[layer].register_forward_hook(
            lambda _, __, out, layer=layer: caught[layer].append(out.detach().numpy())
        )
        for layer in layers
    ]
    with torch.no_grad():
        infer(model, image_of(SIZES[0]))
        for hook in hooks:
            hook.remove()
        tuned = dict(zip(layers, scales(*(caught[layer] for layer in layers), spread), strict=True))
        load(tuned)
        answers = [(size, *infer(model, image_of(size))) for size in SIZES]
    versions = {"torch": torch.__version__, **versions}
    return recorded(names, tuned, answers, versions=versions, **more)


def of_torchvision(**how):
    """Return an author of torchvision's model, made by `how`."""

    def author():
        import torchvision
        from torch import nn
        from torchvision.models.detection import retinanet, rpn
        from torchvision.models.detection.backbone_utils import (
            BackboneWithFPN,
            mobilenet_backbone,
            resnet_fpn_backbone,
        )
        from torchvision.ops.feature_pyramid_network import LastLevelP6P7

        settings = {"weights": None, "weights_backbone": None, "num_classes": 7}
        if how["kind"] == "v1":
            model = retinanet.retinanet_resnet50_fpn(**settings)
        elif how["kind"] == "v2":
            model = retinanet.retinanet_resnet50_fpn_v2(**settings)
        else:
            norm = (lambda c: nn.GroupNorm(32, c)) if how["kind"] == "group" else nn.BatchNorm2d
            if how["kind"] in TAPS:
                name, taps, channels = TAPS[how["kind"]]
                features = getattr(torchvision.models, name)(weights=None).features
                taps = {str(tap): str(place) for place, tap in enumerate(taps)}
                backbone = BackboneWithFPN(features, taps, channels, 256, LastLevelP6P7(256, 256))
            elif how["kind"] == "extracted":  # by torchvision's own function, at strides 8, 16 and 32
                backbone = mobilenet_backbone(
                    backbone_name="mobilenet_v3_large",
                    weights=None,
                    fpn=True,
                    trainable_layers=6,
                    returned_layers=[2, 3, 4],
                    extra_blocks=LastLevelP6P7(256, 256),
                )
            else:
                backbone = resnet_fpn_backbone(
                    backbone_name=how["backbone"], weights=None, norm_layer=norm, trainable_layers=5
                )
            custom = {}
            if how.get("sizes"):
                custom = {
                    "anchor_generator": rpn.AnchorGenerator(how["sizes"], ((0.4, 1.0, 2.5),) * 5),
                    "image_mean": (0.5, 0.4, 0.3),
                    "image_std": (0.25, 0.25, 0.25),
                    "score_thresh": 0.1,
                    "nms_thresh": 0.3,
                    "detections_per_img": 50,
                }
            model = retinanet.RetinaNet(backbone, 7, **custom)
            return run_torch(
                model, TORCHVISION, infer_torchvision, versions={"torchvision": torchvision.__version__}
            )

    return author


def infer_torchvision(model, image):
    """Return boxes, scores and labels; its transform resizes nothing."""
    import torch

    model.transform.min_size, model.transform.max_size = (min(image.shape[:2]),), max(image.shape[:2])
    (found,) = model([torch.from_numpy(image.transpose(2, 0, 1)).float() / 255])
    return found["boxes"].numpy(), found["scores"].numpy(), found["labels"].numpy()


def deepforest():
    """DeepForest's RetinaNetHub with two classes."""
    import importlib.metadata

    from authors_load import load_deepforest

    RetinaNetHub = load_deepforest()
    model = RetinaNetHub(num_classes=2, label_dict={"Alive": 0, "Dead": 1}, score_thresh=0.1)
    version = importlib.metadata.version("deepforest")
    config = json.loads(json.dumps(model._hub_mixin_config))
    return run_torch(model, TORCHVISION, infer_torchvision, versions={"deepforest": version}, config=config)


def mlperf():
    """MLPerf's reference of ResNeXt50; its resize is to the size that it is given."""
    from authors_load import load_mlperf

    model = load_mlperf()("resnext50_32x4d", num_classes=264, image_size=[256, 384], pretrained_backbone=False)

    def infer(model, image):
        model.transform.image_size = image.shape[:2]
        model.transform.fixed_size = image.shape[1::-1] if hasattr(model.transform, "fixed_size") else None
        return infer_torchvision(model, image)

    return run_torch(model, TORCHVISION, infer, versions={"mlcommons/training": "aa344c7"})


def of_detectron2(stride_in_1x1):
    """Return an author of Detectron2's R50-FPN, a quarter as wide."""

    def author():
        import detectron2
        import torch
        from detectron2.config import get_cfg
        from detectron2.modeling import build_model

        cfg = get_cfg()
        configs = Path(detectron2.__file__).parents[1] / "configs"
        cfg.merge_from_file(configs / "COCO-Detection/retinanet_R_50_FPN_1x.yaml")
        cfg.MODEL.DEVICE, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = "cpu", stride_in_1x1
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16, 64
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.FPN.OUT_CHANNELS = 16, 64
        cfg.MODEL.RETINANET.NUM_CLASSES = 7
        model = build_model(cfg)

        def infer(model, image):
            bgr = torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy()).float()
            found = model([{"image": bgr, "height": image.shape[0], "width": image.shape[1]}])[0]["instances"]
            return found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy()

        layers = ("head.cls_score", "head.bbox_pred")
        return run_torch(model, layers, infer, versions={"detectron2": "02b5c4e"}, config=cfg.dump())

    return author


def of_mmdetection(**how):
    """Return an author of mmdetection's R50-FPN, narrow; its compiled operators are torchvision's here."""

    def author():
        from authors_load import load_mmdetection

        version = load_mmdetection()
        import mmdet
        import mmengine
        import torch
        from mmdet.registry import MODELS
        from mmdet.structures import DetDataSample
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=True)
        style = "-caffe" if how.get("style") == "caffe" else ""
        configs = Path(mmdet.__file__).parent / ".mim/configs/retinanet"
        config = mmengine.Config.fromfile(configs / f"retinanet_r50{style}_fpn_1x_coco.py").model
        width = 64 if how.get("groups") else 16
        config.backbone.update(init_cfg=None, base_channels=width)
        if how.get("groups"):
            config.backbone.update(type="ResNeXt", groups=32, base_width=4)
        inputs = [width * each for each in (4, 8, 16, 32)]
        config.neck.update(in_channels=inputs, out_channels=64, add_extra_convs=how.get("extra", "on_input"))
        config.bbox_head.update(num_classes=7, in_channels=64, feat_channels=64)
        config.bbox_head.bbox_coder.target_stds = how.get("stds", [1.0] * 4)
        model = MODELS.build(config)

        def infer(model, image):
            sample = DetDataSample(
                metainfo={
                    "img_shape": image.shape[:2], "ori_shape": image.shape[:2], "scale_factor": (1.0, 1.0),
                    "pad_shape": image.shape[:2], "batch_input_shape": image.shape[:2],
                }
            )  # fmt: skip
            bgr = torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy())
            data = model.data_preprocessor({"inputs": [bgr], "data_samples": [sample]}, False)
            found = model.predict(data["inputs"], data["data_samples"])[0].pred_instances
            return found.bboxes.numpy(), found.scores.numpy(), found.labels.numpy()

        layers = ("bbox_head.retina_cls", "bbox_head.retina_reg")
        text = mmengine.Config({"model": config}).pretty_text
        versions = {"mmdet": mmdet.__version__, "mmcv": version, "mmengine": mmengine.__version__}
        return run_torch(
            model, layers, infer, versions=versions, spread=0.3 / how.get("stds", [1])[0], config=text
        )

    return author


def yhenon():
    """yhenon's ResNet18."""
    from retinanet.model import resnet18

    model = resnet18(num_classes=7)

    def infer(model, image):
        import torch

        x = (image / 255 - np.array((0.485, 0.456, 0.406))) / np.array((0.229, 0.224, 0.225))
        scores, labels, boxes = model(torch.from_numpy(x.transpose(2, 0, 1)[None]).float())
        return boxes.numpy(), scores.numpy(), labels.numpy()

    layers = ("classificationModel.output", "regressionModel.output")
    return run_torch(model, layers, infer, versions={"pytorch-retinanet": "0348a9d"}, spread=3.0)


def fizyr():
    """fizyr's ResNet50, as a converted model answers."""
    from authors_load import load_fizyr

    models = load_fizyr()
    import h5py
    import keras
    import tensorflow as tf

    model = models.backbone("resnet50").retinanet(num_classes=7)
    path = Path("fizyr.h5")
    model.save_weights(path)
    shapes = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: shapes.update({name: item.shape}) if isinstance(item, h5py.Dataset) else None
        )

    def load(tuned):
        with h5py.File(path, "r+") as file:
            for name, shape in shapes.items():
                file[name][...] = seeded(name, shape, tuned)
        model.load_weights(path)

    def caffe(image):
        return image[None, :, :, ::-1].astype(np.float32) - np.array((103.939, 116.779, 123.68), np.float32)

    layers = ("classification_submodel/pyramid_classification", "regression_submodel/pyramid_regression")
    small = 1e-2  # so that no score is 0 or 1
    load({layers[0]: (small, 0.0)})
    deltas, scores = model.predict(caffe(image_of(SIZES[0])), verbose=0)
    scores = scores.astype(np.float64)
    tuned = dict(zip(layers, scales([np.log(scores / (1 - scores))], [deltas], 1.0), strict=True))
    tuned[layers[0]] = (tuned[layers[0]][0] * small, tuned[layers[0]][1])
    load(tuned)
    converted = models.retinanet.retinanet_bbox(model=model)
    answers = []
    for size in SIZES:
        boxes, found, labels = (each[0] for each in converted.predict(caffe(image_of(size)), verbose=0))
        kept = labels >= 0
        answers.append((size, boxes[kept], found[kept], labels[kept]))
    path.unlink()
    versions = {"keras-retinanet": "7ac91df", "tensorflow": tf.__version__, "keras": keras.__version__}
    return recorded(shapes, tuned, answers, versions=versions, config=converted.to_json())


OWN_SIZES = ((16, 20, 25), (32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406))
AUTHORS = {
    "torchvision_v1": of_torchvision(kind="v1"),
    "torchvision_v2": of_torchvision(kind="v2"),
    "torchvision_own": of_torchvision(kind="own", backbone="resnet18", sizes=OWN_SIZES),
    "torchvision_pool": of_torchvision(kind="pool", backbone="resnet18"),
    "torchvision_mobile": of_torchvision(kind="mobile"),
    "torchvision_mobile3": of_torchvision(kind="mobile3"),
    "torchvision_extracted": of_torchvision(kind="extracted"),
    "torchvision_efficient": of_torchvision(kind="efficient"),
    "torchvision_group": of_torchvision(kind="group", backbone="resnet18", sizes=OWN_SIZES),
    "deepforest": deepforest,
    "mlperf": mlperf,
    "detectron2": of_detectron2(True),
    "detectron2_3x3": of_detectron2(False),
    "mmdetection": of_mmdetection(),
    "mmdetection_caffe": of_mmdetection(style="caffe", extra="on_output"),
    "mmdetection_x50": of_mmdetection(groups=32, stds=[0.1, 0.1, 0.2, 0.2]),
    "yhenon": yhenon,
    "fizyr": fizyr,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
