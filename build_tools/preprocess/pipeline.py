"""The DALI pipelines to a letterboxed image: from encoded bytes, on the CPU or the GPU, and from decoded pixels.

    preprocess_pipeline(size=(512, 512), fill=(124, 116, 104), batch_size=16, num_threads=2, device_id=None)
    pixels_pipeline(...)    # the same arguments: of JPEGs that were decoded at the scale they are seen at

Input `image_bytes`, or `pixels`, `original` and `area`; outputs `image` uint8 (3, H, W) RGB and `letterbox`
float32 (4,): original h and w, resized h and w. Triton's dali backend maps outputs by position, so their order is
part of the contract (OUTPUTS).
"Original" is after the EXIF orientation, which the decoder applies. Normalisation is not here: it is the
network's first layer.
"""

from typing import Any

import nvidia.dali.math as dmath
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali._utils import dali_trace

INPUT = "image_bytes"
OUTPUTS = ("image", "letterbox")
# Declared, because Triton's dali backend checks a config against nothing else.
OUTPUT_TYPES, OUTPUT_RANKS = [types.UINT8, types.FLOAT], [3, 1]


def letterbox_pixels(extent: Any, ratio: Any) -> Any:
    """Round a side scaled by the letterbox's ratio half up, and keep at least one pixel."""
    return dmath.max(dmath.floor(extent * ratio + 0.5), 1.0)


def preprocess_graph(*, size: tuple[int, int], fill: tuple[int, int, int], decoder: str = "cpu") -> Any:
    """Return the outputs; `decoder` is "cpu" or "mixed" (decode, resize and letterbox on the GPU)."""
    encoded = fn.external_source(device="cpu", name=INPUT, dtype=types.UINT8, ndim=1)
    # Read from the header, so that the sizes are on the CPU whatever the decoder's device is.
    original = fn.cast(fn.peek_image_shape(encoded), dtype=types.FLOAT)
    image = fn.decoders.image(encoded, device=decoder, output_type=types.RGB)
    return _letterbox(image, original, size, fill)


def pixels_graph(*, size: tuple[int, int], fill: tuple[int, int, int]) -> Any:
    """Return the outputs of `pixels` (h, w, 3); `original` is the size of a Jpeg, `area` that of a Scaled."""
    # The arrays are kept by who runs the pipeline until it has run.
    pixels = fn.external_source(name="pixels", dtype=types.UINT8, ndim=3, layout="HWC", no_copy=True)
    original = fn.external_source(name="original", dtype=types.FLOAT, ndim=1)
    area = fn.external_source(name="area", dtype=types.FLOAT, ndim=1)  # y1, x1, y2, x2
    return _letterbox(pixels, original, size, fill, roi_start=area[0:2], roi_end=area[2:4])


def _letterbox(
    image: Any, original: Any, size: tuple[int, int], fill: tuple[int, int, int], **part: Any
) -> tuple[Any, Any]:
    height, width = size
    original_h, original_w = original[0], original[1]
    ratio = dmath.min(height / original_h, width / original_w)
    resized_h, resized_w = letterbox_pixels(original_h, ratio), letterbox_pixels(original_w, ratio)
    image = fn.resize(
        image,
        resize_x=resized_w,
        resize_y=resized_h,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
        **part,
    )
    # One pass: place at the top left, pad with the mean colour, HWC -> CHW.
    image = fn.crop_mirror_normalize(
        image,
        crop=(height, width),
        crop_pos_x=0.0,
        crop_pos_y=0.0,
        out_of_bounds_policy="pad",
        fill_values=list(fill),
        mean=[0.0] * 3,
        std=[1.0] * 3,
        dtype=types.UINT8,
        output_layout="CHW",
    )
    return image, fn.stack(original_h, original_w, resized_h, resized_w)


_pipeline = pipeline_def(output_dtype=OUTPUT_TYPES, output_ndim=OUTPUT_RANKS)
preprocess_pipeline, pixels_pipeline = _pipeline(preprocess_graph), _pipeline(pixels_graph)


def serialise(
    *, size: tuple[int, int], fill: tuple[int, int, int], max_batch: int, threads: int, decoder: str = "mixed"
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
            decoder=decoder,
            batch_size=max_batch,
            num_threads=threads,
            device_id=None,  # the backend sets the instance's
            seed=0,
        )
        return bytes(pipeline.serialize())
    finally:
        dali_trace.set_tracing(enabled=traced)
