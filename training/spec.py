"""The one description of a detector: what every other folder imports or is tested against.

    spec = DetectorSpec.create(["cat", "dog"], size=(512, 512), backbone="resnet18")
    DetectorSpec.from_json(spec.to_json()) == spec

Tensor names, anchors, thresholds, normalisation and the size of the network, without torch, so that a client, a
build tool or a test can read it anywhere.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from retinaserve.training.anchors import base_anchors, grid_anchors
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import from_json
from retinaserve.training.images.resize import RESIZES, PixelType, Resize
from retinaserve.training.layouts import BACKBONES
from retinaserve.training.settings import check_settings, setting

__all__ = ["DetectorSpec", "Network"]

# Models of the Triton repository and their tensors (docs/serving.md). `admission` is the GPU profile's alone.
ADMISSION, PREPROCESS, RETINANET, DETECTOR = "admission", "preprocess", "retinanet", "detector"
DETECTOR_TILED = "detector_tiled"  # where `build --tile` asked for it
IMAGE_BYTES = "image_bytes"  # UINT8 [-1], one encoded image
IMAGE = "image"  # UINT8 or FP32 [3, H, W] RGB of 0..255, letterboxed
LETTERBOX = "letterbox"  # FP32 [4]: original h, original w, resized h, resized w
NUM_DETECTIONS, BOXES, SCORES, CLASSES = "num_detections", "boxes", "scores", "classes"


@dataclass(frozen=True)
class Tensor:
    """A tensor of a served model: NumPy's name of its type, and its dimensions without the batch."""

    dtype: str
    shape: tuple[int, ...]


SLOTS = -1  # a dimension of OUTPUTS that is the spec's max_detections
OUTPUTS: Mapping[str, Tensor] = {
    NUM_DETECTIONS: Tensor("int32", (1,)),
    BOXES: Tensor("float32", (SLOTS, 4)),
    SCORES: Tensor("float32", (SLOTS,)),
    CLASSES: Tensor("int32", (SLOTS,)),
}

# The raw network between training and graft: normalised image in, one pair of maps a level out.
NETWORK_INPUT = "input"  # FP32 [B, 3, H, W], (pixel/255 - mean) / std
METADATA_SPEC = "retinaserve.spec"  # ONNX metadata_props: the spec's JSON
METADATA_CLASSES = "retinaserve.classes"  # ONNX metadata_props: the class names as a JSON list
METADATA_PRECISION = "retinaserve.precision"  # ONNX metadata_props: "int8", "fp16"; an FP32 graph has none
METADATA_CALIBRATION = "retinaserve.calibration"  # ONNX metadata_props: what INT8 was calibrated with, as JSON
METADATA_CHECKPOINT = "retinaserve.checkpoint_sha256"  # ONNX metadata_props: of the checkpoint it was made from

# The largest log size delta; beyond it exp() makes absurd boxes (the value of Detectron and torchvision).
DELTA_CLAMP = math.log(1000.0 / 16)
FIRST_LEVEL = 3  # P3
STRIDES = (8, 16, 32, 64, 128)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMS = ("none", "batch", "group")
# pool: every second cell of P5, and no P7; none: the pyramid ends at P5
P6_SOURCES = ("c5", "p5", "pool", "none")
Clip = Literal["image", "canvas"]
FORMAT = 1

RENAMED = {"candidates_per_level": "topk_candidates"}  # in checkpoints and graphs that were written before

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Network:
    """The size of the network: a detector of 1 M parameters is a configuration, not another model."""

    backbone: str = setting("resnet50", "What finds the features.", choices=tuple(BACKBONES))
    width: int = setting(64, "Of the backbone; 64 is the published network.", low=1)
    fpn_channels: int = setting(256, "Channels of pyramid and heads.", low=1)
    head_depth: int = setting(4, "Convolutions before each head's output.", low=0)
    # training from scratch needs one
    norm: str = setting("batch", "Normalisation of pyramid and heads.", choices=NORMS)
    towers: str = setting("two", "Convolutions for classes and boxes apart, or for both.", choices=("two", "one"))
    # Whether INT8 takes the heads' outputs too: of one anchor a cell they are few.
    int8_outputs: bool = setting(False, "Of the heads: INT8 has their outputs, too.")
    # Imported weights differ in these: torchvision's first RetinaNet makes P6 from P5, its second has norms in the
    # heads alone.
    p6_from: str = setting("c5", "What is coarser than P5 is made from.", choices=P6_SOURCES)
    pyramid_norm: bool = True  # where there is a `norm`
    p7_relu: bool = True  # between P6 and P7; mmdetection has none
    finest: str = setting("c3", choices=("c3", "c2"))  # what the pyramid begins at
    stride_in: str = setting("3x3", choices=("3x3", "1x1"))  # of a bottleneck; 1x1 is the paper's and Caffe's
    # of strided convolutions; same is TensorFlow's
    padding: str = setting("symmetric", choices=("symmetric", "same"))
    backbone_norm: str = setting("batch", choices=("batch", "group"))
    # What the last two of a box's four outputs are: the logarithm of its size in anchors, or that size itself.
    growth: str = setting("log", choices=("log", "linear"))
    taps: tuple[int, ...] = ()  # layers of an EfficientLayout, where they are not the layout's
    # How far apart cells are: the level's stride, or torchvision's height // rows and width // columns, which is
    # less where a side is no multiple of the stride. The deltas are always those of anchors a stride apart.
    grid: str = setting("stride", choices=("stride", "size"))

    def __post_init__(self) -> None:
        check_settings(self, "network ", code=Exit.BAD_DATA)


@dataclass(frozen=True)
class Design:
    """What a new detector is asked for besides its network."""

    size: tuple[int, int] = setting(RESIZES["letterbox"].usual, "Input of the network.", low=32, metavar="H W")
    resize_rule: str = setting(
        "letterbox",
        "How images become inputs; but for letterbox and mlperf, --size is then the shorter and the longest side.",
        choices=tuple(RESIZES),
    )
    anchor_size: float = setting(4.0, "In strides.", low=0, open_low=True)
    one_anchor: bool = setting(False, "A single square anchor a cell, instead of nine.")


@dataclass(frozen=True)
class DetectorSpec:
    """All that defines a detector besides its weights: frozen, hashable, equal after a JSON round trip."""

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]  # the COCO category of each class, in the same order
    size: tuple[int, int]  # H, W of the canvas; the shorter and the longest side where `resize` goes by those
    anchors: tuple[tuple[Box, ...], ...]  # [level][A]: xyxy from the cell's origin
    network: Network = Network()
    strides: tuple[int, ...] = STRIDES
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of pixels in 0..1, RGB
    std: tuple[float, float, float] = IMAGENET_STD
    score_threshold: float = 0.05
    topk_candidates: int = 1000
    nms_iou: float = 0.5
    max_detections: int = 100
    delta_clamp: float = DELTA_CLAMP  # the most that dw and dh can be
    # Pixels that boxes keep from the scaled image's right and bottom edge; negative: that they may leave it by, on
    # all sides, until NMS is done.
    clip_margin: float = 0.0
    clip: Clip = "image"  # what boxes end at, also those that are answered: the canvas has the padding, too
    tile: tuple[int, int] | None = None  # (h, w) that images were cut into for training, and are for `--tile auto`
    resize: str = "letterbox"  # of resize.RESIZES: what an image becomes on its way to the network
    pixels: PixelType = "uint8"  # of `image`: float32 where the author does not round what he resized
    # (black, white) of samples of more than 8 bits; None: their depth's
    value_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise UserError(f"detector spec: {problem}")

    def _problem(self) -> str:
        counts = {len(level) for level in self.anchors}
        checks = (
            (bool(self.classes), "no classes"),
            (len(set(self.classes)) == len(self.classes), "two classes have the same name"),
            (all(name.strip() for name in self.classes), "a class name is empty"),
            (len(self.category_ids) == len(self.classes), "as many category_ids as classes are expected"),
            (len(set(self.category_ids)) == len(self.category_ids), "two classes have the same category id"),
            (len(self.strides) > 0 and min(self.strides, default=0) > 0, "strides must be positive"),
            (len(self.anchors) == len(self.strides), "one row of anchors a stride is expected"),
            (len(counts) == 1 and 0 not in counts, "every level needs equally many anchors"),
            (min(self.size) > 0, f"size {self.size[0]} x {self.size[1]} is empty"),
            (self.resize in RESIZES, f"resize {self.resize!r} is not one of {', '.join(RESIZES)}"),
            (self.clip in get_args(Clip), f"clip {self.clip!r} is neither image nor canvas"),
            (self.pixels in get_args(PixelType), f"pixels {self.pixels!r} are neither uint8 nor float32"),
            (
                self.resize not in RESIZES or self.resizing.fixed or self.size[0] <= self.size[1],
                f"size {self.size[0]} {self.size[1]}: {self.resize} expects the shorter and the longest side",
            ),
            (0 < self.score_threshold < 1, f"score_threshold {self.score_threshold} is not between 0 and 1"),
            (0 < self.nms_iou <= 1, f"nms_iou {self.nms_iou} is not in (0, 1]"),
            (self.topk_candidates > 0, "topk_candidates must be positive"),
            (self.max_detections > 0, "max_detections must be positive"),
            (all(value > 0 for value in self.std), "std must be positive"),
            (
                self.value_range is None or 0 <= self.value_range[0] < self.value_range[1] < 65536,
                f"value_range {self.value_range} is not two rising values of 16 bits",
            ),
        )
        return next((message for ok, message in checks if not ok), "")

    @classmethod
    def create(
        cls,
        classes: Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        anchor_size: float = Design.anchor_size,
        one_anchor: bool = Design.one_anchor,
        resize_rule: str = Design.resize_rule,
        category_ids: Sequence[int] | None = None,
        **settings: Any,
    ) -> Self:
        """Return a spec with the default anchors; category ids count from 1 unless given.

        size: the usual one of the resize rule if None.
        anchor_size: side of an anchor in strides, lower for small objects; settings: further fields of `Network`
        and of the spec.
        """
        given = {each.name: settings.pop(each.name) for each in fields(Network) if each.name in settings}
        network = Network(**given)
        strides = settings.pop("strides", STRIDES[: {"none": 3, "pool": 4}.get(network.p6_from, 5)])
        shapes = {"scales": (1.0,), "ratios": (1.0,)} if one_anchor else {}
        table = base_anchors(strides, base_size=anchor_size, **shapes)
        return cls(
            classes=tuple(classes),
            category_ids=tuple(category_ids if category_ids is not None else range(1, len(classes) + 1)),
            size=size or RESIZES[resize_rule].usual,
            anchors=anchor_rows(table),
            network=network,
            strides=strides,
            resize=resize_rule,
            **settings,
        )

    @property
    def anchor_table(self) -> npt.NDArray[np.float32]:
        """The anchors as a (levels, A, 4) array."""
        return np.asarray(self.anchors, np.float32)

    def all_anchors(self, canvas: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
        """Return the anchors of all levels (N, 4), each level in the order of a flattened (A, h, w) map.

        canvas: (h, w) of the network's input; `size` if None.
        """
        levels = enumerate(zip(self.anchor_table, self.strides, strict=True))
        return np.concatenate(
            [grid_anchors(table, stride, *self.feature_size(level, canvas)) for level, (table, stride) in levels]
        )

    def all_strides(self, canvas: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
        """Return the stride (N,) of each of `all_anchors`."""
        sizes = [math.prod(self.feature_size(level, canvas)) for level in range(len(self.strides))]
        return np.repeat(np.array(self.strides, np.float32), np.multiply(sizes, self.anchors_per_cell))

    @property
    def resizing(self) -> Resize:
        """The rule of `resize`, for these pixels."""
        return replace(RESIZES[self.resize], pixels=self.pixels)

    @property
    def anchors_per_cell(self) -> int:
        """A, the same on every level."""
        return len(self.anchors[0])

    @property
    def score_threshold_logit(self) -> float:
        """The threshold before the sigmoid: comparing logits spares the sigmoid of everything that falls."""
        return math.log(self.score_threshold / (1 - self.score_threshold))

    @property
    def pad_value(self) -> tuple[float, float, float]:
        """The mean colour, in bytes where pixels are: what the letterbox is padded with."""
        red, green, blue = (255 * value if self.pixels == "float32" else round(255 * value) for value in self.mean)
        return red, green, blue

    @property
    def head_names(self) -> tuple[tuple[str, str], ...]:
        """(logits, deltas) a level: FP32 [B, A*C, h, w] (channel a*C + c) and [B, A*4, h, w] (a*4 + i)."""
        first = FIRST_LEVEL - (self.network.finest == "c2")
        levels = range(first, first + len(self.strides))
        return tuple((f"cls_logits_p{level}", f"box_deltas_p{level}") for level in levels)

    @property
    def decoding(self) -> dict[str, Any]:
        """The settings of plugins/reference.py's `decode`, by the names of its arguments."""
        return {
            "anchors": self.anchor_table,
            "strides": self.strides,
            "threshold_logit": self.score_threshold_logit,
            "topk": self.topk_candidates,
            "delta_clamp": self.delta_clamp,
            "clip_margin": self.clip_margin,
        }

    def ends(self, letterbox: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return what the reference takes for LETTERBOX (B, 4): boxes end at what it says is the image."""
        if self.clip == "image":
            return letterbox
        original, resized = np.split(letterbox, 2, axis=1)
        sides = [(round(float(h)), round(float(w))) for h, w in resized]
        canvas = np.array([self.resizing.canvas(each, self.size) for each in sides], np.float32)
        return np.concatenate((original * (canvas / resized), canvas), axis=1)  # at the same scale

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The settings of build_tools/preprocess's `Preprocessor`, by the names of its arguments."""
        return {
            "size": self.size,
            "fill": self.pad_value,
            "resize": self.resize,
            "pixels": self.pixels,
            "value_range": self.value_range,
        }

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The tensors that the deployed graph takes; -1 where a side is the image's own."""
        canvas = self.size if self.resizing.fixed else (-1, -1)
        return {IMAGE: Tensor(self.pixels, (3, *canvas)), LETTERBOX: Tensor("float32", (4,))}

    @property
    def outputs(self) -> dict[str, Tensor]:
        """The tensors that the deployed graph gives: OUTPUTS with as many slots as there are detections."""
        slots = {SLOTS: self.max_detections}
        return {
            name: replace(tensor, shape=tuple(slots.get(side, side) for side in tensor.shape))
            for name, tensor in OUTPUTS.items()
        }

    def feature_size(self, level: int, canvas: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return (h, w) of the feature map of a level, counted from 0: every stride-2 layer rounds up."""
        stride, (height, width) = self.strides[level], canvas or self.size
        return -(-height // stride), -(-width // stride)

    def with_size(self, height: int, width: int) -> Self:
        """Return the same detector at another input size."""
        return replace(self, size=(height, width))

    @property
    def size_text(self) -> str:
        """The size, for people."""
        height, width = self.size
        rule = "" if self.resize == "letterbox" else f" ({self.resize})"
        return f"{height} x {width}{rule}" if self.resizing.fixed else f"{height} to {width}{rule}"

    def to_json(self) -> str:
        """Return the spec as JSON; `from_json` gives back an equal spec."""
        values = asdict(self)
        # earlier versions don't know them
        for record, names in (
            (self, ("tile", "resize", "pixels", "value_range", "clip")),
            (self.network, ("towers", "int8_outputs", "taps")),
        ):
            stated = values if record is self else values["network"]
            for name in names:
                if stated[name] == getattr(type(record), name):
                    del stated[name]
        return json.dumps({"format": FORMAT, **values})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read `to_json`'s text. Raises UserError for text that is not a spec or has an unknown field."""
        record = from_json(text, "detector spec", FORMAT)
        data = {RENAMED.get(name, name): value for name, value in record.items()}
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise UserError(f"detector spec has unknown fields: {', '.join(unknown)}")
        try:
            values = {name: _frozen(value) for name, value in data.items() if name != "network"}
            # the first specs had no norm to choose
            network = {"norm": "none"} | {name: _frozen(value) for name, value in data["network"].items()}
            return cls(network=Network(**network), **values)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"detector spec is incomplete: {error}") from None


def anchor_rows(table: npt.NDArray[np.float32]) -> tuple[tuple[Box, ...], ...]:
    """Return a (levels, A, 4) array as the spec keeps it."""
    rows: tuple[tuple[Box, ...], ...] = _frozen(table.tolist())
    return rows


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
