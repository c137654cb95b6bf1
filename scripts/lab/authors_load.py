# mypy: ignore-errors
"""Authors' packages without what was not compiled or can't be had here. What is not the author's own:

deepforest     torchvision's constructor is told not to download a backbone
mlperf         mlperf_logging is a module that does nothing
mmdetection    of mmcv's compiled operators NMS is torchvision's, the others are missing; mmcv says it is 2.1.0
odtk           decode's divisions of integers are rounded down, as torch's once were; nothing is compiled
fizyr          compute_overlap, compiled and of training alone, is missing
"""

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path


def load_deepforest():
    """Return DeepForest's RetinaNetHub, and keep it from downloading a backbone, to be replaced."""
    import functools

    from deepforest.models.retinanet import RetinaNetHub
    from torchvision.models import detection

    make = functools.partial(detection.retinanet_resnet50_fpn, weights_backbone=None)
    detection.retinanet.retinanet_resnet50_fpn = detection.retinanet_resnet50_fpn = make
    return RetinaNetHub


def load_mlperf():
    """Return the maker of MLPerf's networks, without its logging."""

    class Log(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return Log(name)

        def __call__(self, *args, **words):
            return self

    for name in ("mlperf_logging", "mlperf_logging.mllog", "mlperf_logging.mllog.constants"):
        sys.modules[name] = Log(name)
    from model.retinanet import retinanet_from_backbone

    return retinanet_from_backbone


def load_mmdetection():
    """Import mmcv without what it compiles, and return its version."""
    import torchvision

    class Ext(types.ModuleType):
        __file__ = __path__ = None

        def __getattr__(self, name):
            return lambda *args, **words: None

        def nms(self, boxes, scores, iou_threshold, offset):
            return torchvision.ops.nms(boxes, scores, iou_threshold)

    ext = sys.modules["mmcv._ext"] = Ext("mmcv._ext")
    ext.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
    import mmcv

    version, mmcv.__version__ = mmcv.__version__, "2.1.0"  # mmdet refuses its own newer sources
    return version


def load_odtk(*names):
    """Return modules of odtk, whose compiled part is for GPUs; its decode for CPUs is mended."""
    from torchvision.models import resnet

    resnet.model_urls = {"resnet50": None}
    compiled = sys.modules["odtk._C"] = types.ModuleType("odtk._C")
    compiled.Engine = compiled.decode = compiled.iou = compiled.nms = None
    box = importlib.util.find_spec("odtk.box")
    text = Path(box.origin).read_text()
    for index in ("indices / width / height", "indices / width", "indices / num_classes / height / width"):
        text = text.replace(index, index.replace("/", "//"))  # torch 1.4 rounded a division of integers down
    module = sys.modules["odtk.box"] = importlib.util.module_from_spec(box)
    exec(compile(text, box.origin, "exec"), module.__dict__)
    return [importlib.import_module(f"odtk.{name}") for name in names]


def load_fizyr():
    """Return keras_retinanet.models, without what is compiled."""
    compiled = types.ModuleType("keras_retinanet.utils.compute_overlap")
    compiled.compute_overlap = None  # Cython, of training alone
    sys.modules["keras_retinanet.utils.compute_overlap"] = compiled
    from keras_retinanet import models

    return models
