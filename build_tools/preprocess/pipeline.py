"""The DALI pipelines to a resized and padded image: of encoded bytes, on CPU or GPU, and of decoded pixels.

    preprocess_pipeline(size=(512, 512), fill=(124, 116, 104), batch_size=16, num_threads=2, device_id=None)
    pixels_pipeline(...)    # the same arguments: of JPEGs that were decoded at the scale they are seen at

Input `image_bytes`, or `pixels`, `original` and `area`; outputs `image` (3, H, W) RGB and `letterbox`
float32 (4,): original h and w, resized h and w. H and W are `size`, or by some rules the image's own (resize.py).
Triton's dali backend maps outputs by position, so their order is part of the contract (OUTPUTS).
"Original" is after the EXIF orientation, which the decoder applies. Normalisation is not here: it is the
network's first layer.
"""

from typing import Any

import nvidia.dali.math as dmath
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali._utils import dali_trace

from .operators import resized
from .resize import RESIZES, PixelType, Resize

INPUT = "image_bytes"
OUTPUTS = ("image", "letterbox")
OUTPUT_RANKS = [3, 1]
TYPES = {"uint8": types.UINT8, "float32": types.FLOAT}  # of the image, whose pixels are 0..255 in both


def resized_sides(height: Any, width: Any, size: tuple[int, int], rule: Resize) -> tuple[Any, Any, Any, Any]:
    """Return Resize.resized and Resize.extent in DALI's operators: of float32 sides, as float32."""
    if rule.sides == "stretch":
        return (height * 0.0 + size[0], width * 0.0 + size[1]) * 2
    if rule.sides == "fit":
        ratio = dmath.min(size[0] / height, size[1] / width)
        return (_rounded(height * ratio, "half_up"), _rounded(width * ratio, "half_up")) * 2
    height, width = fn.cast(height, dtype=types.FLOAT64), fn.cast(width, dtype=types.FLOAT64)
    longest = dmath.max(height, width)
    first = size[0] / dmath.min(height, width)
    if rule.in_turn:  # a second factor of 1 changes no bit
        height, width, first = height * first, width * first, dmath.min(size[1] / (longest * first), 1.0)
    else:
        first = dmath.min(first, size[1] / longest)
    exact = (height * first, width * first)
    rounded = tuple(_rounded(side, rule.rounding) for side in exact)
    sides = (*rounded, *(exact if rule.by_factor else rounded))
    return tuple(fn.cast(side, dtype=types.FLOAT) for side in sides)


def _rounded(side: Any, rounding: str) -> Any:
    """Round a side, and keep at least one pixel."""
    if rounding == "floor":
        return dmath.max(dmath.floor(side), 1.0)
    up = dmath.floor(side + 0.5)
    if rounding == "half_even":  # one less where half was rounded to an odd number
        odd = up - 2.0 * dmath.floor(up * 0.5)
        up = up - odd * fn.cast(up - side == 0.5, dtype=types.FLOAT64)
    return dmath.max(up, 1.0)


def canvas_side(side: Any, rule: Resize) -> Any:
    """Return the side of the canvas of a resized side, by a rule without fixed canvases: Resize.canvas."""
    return (dmath.floor((side - 1.0 + float(rule.beyond)) / float(rule.multiple)) + 1.0) * float(rule.multiple)


def preprocess_graph(
    *,
    size: tuple[int, int],
    fill: tuple[float, float, float],
    resize: str = "letterbox",
    pixels: PixelType = "uint8",
    decoder: str = "cpu",
) -> Any:
    """Return the outputs; `decoder` is "cpu" or "mixed" (decode, resize and pad on the GPU)."""
    encoded = fn.external_source(device="cpu", name=INPUT, dtype=types.UINT8, ndim=1)
    # Read from the header, so that the sizes are on the CPU whatever the decoder's device is.
    original = fn.cast(fn.peek_image_shape(encoded), dtype=types.FLOAT)
    image = fn.decoders.image(encoded, device=decoder, output_type=types.RGB)
    return _resized(image, original, size, fill, RESIZES[resize], TYPES[pixels], original)


def pixels_graph(
    *,
    size: tuple[int, int],
    fill: tuple[float, float, float],
    resize: str = "letterbox",
    pixels: PixelType = "uint8",
) -> Any:
    """Return the outputs of `pixels` (h, w, 3); `original` is the size of a Jpeg, `area` that of a Scaled."""
    # The arrays are kept by who runs the pipeline until it has run.
    given = fn.external_source(name="pixels", dtype=types.UINT8, ndim=3, layout="HWC", no_copy=True)
    original = fn.external_source(name="original", dtype=types.FLOAT, ndim=1)
    area = fn.external_source(name="area", dtype=types.FLOAT, ndim=1)  # y1, x1, y2, x2
    rule, kind = RESIZES[resize], TYPES[pixels]
    return _resized(given, original, size, fill, rule, kind, fn.cast(given.shape(), dtype=types.FLOAT), area)


def _resized(
    image: Any,
    original: Any,
    size: tuple[int, int],
    fill: tuple[float, float, float],
    rule: Resize,
    kind: Any,
    shape: Any,
    area: Any = None,
) -> tuple[Any, Any]:
    original_h, original_w = original[0], original[1]
    resized_h, resized_w, *extent = resized_sides(original_h, original_w, size, rule)
    height, width = size if rule.fixed else (canvas_side(resized_h, rule), canvas_side(resized_w, rule))
    if rule.blur:  # to four deviations, as scipy.ndimage.gaussian_filter
        ratios = fn.stack(original_h, original_w) / fn.stack(resized_h, resized_w)
        sigma = dmath.max(0.5 * (ratios - 1.0), 1e-3)  # 0 is refused
        window = fn.cast(2.0 * dmath.floor(4.0 * sigma + 0.5) + 1.0, dtype=types.INT32)
        image = fn.gaussian_blur(image, sigma=sigma, window_size=window, dtype=types.FLOAT)
    if rule.by_factor:  # of an image that was not decoded smaller; its last pixels are repeated beyond it
        ratios = fn.stack(original_h, original_w) / fn.stack(*extent)
        start = fn.stack(original_h, original_w) * 0.0 if area is None else area[0:2]
        area = fn.cat(start, start + fn.stack(resized_h, resized_w) * ratios)
    image = resized(image, shape, (resized_h, resized_w), rule, types.FLOAT if rule.blur else kind, area)
    # One pass: place at the top left, pad with the mean colour, HWC -> CHW.
    image = fn.crop_mirror_normalize(
        image,
        crop_h=height,
        crop_w=width,
        crop_pos_x=0.0,
        crop_pos_y=0.0,
        out_of_bounds_policy="pad",
        fill_values=list(fill),
        mean=[0.0] * 3,
        std=[1.0] * 3,
        dtype=kind,
        output_layout="CHW",
    )
    return image, fn.stack(original_h, original_w, *extent)


def declared(pixels: PixelType = "uint8") -> dict[str, Any]:
    """Return the outputs' types and ranks, because Triton's dali backend checks a config against nothing else."""
    return {"output_dtype": [TYPES[pixels], types.FLOAT], "output_ndim": OUTPUT_RANKS}


preprocess_pipeline, pixels_pipeline = pipeline_def(preprocess_graph), pipeline_def(pixels_graph)


def serialise(
    *,
    size: tuple[int, int],
    fill: tuple[float, float, float],
    max_batch: int,
    threads: int,
    resize: str = "letterbox",
    pixels: PixelType = "uint8",
    decoder: str = "mixed",
) -> bytes:
    """Return the pipeline as Triton's dali backend loads it: the same bytes for the same arguments, without a GPU.

    Without the origin of each operator, which DALI would write into it and put into its error messages: the
    server's paths are none of a client's business.
    """
    traced = dali_trace.is_tracing_enabled()
    dali_trace.set_tracing(enabled=False)
    try:
        pipeline = preprocess_pipeline(
            size=size,
            fill=fill,
            resize=resize,
            pixels=pixels,
            decoder=decoder,
            batch_size=max_batch,
            num_threads=threads,
            device_id=None,  # the backend sets the instance's
            seed=0,
            **declared(pixels),
        )
        return bytes(pipeline.serialize())
    finally:
        dali_trace.set_tracing(enabled=traced)
