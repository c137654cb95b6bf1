"""The DALI pipeline from encoded bytes to a letterboxed image, on the CPU or the GPU.

    preprocess_pipeline(size=(512, 512), fill=(124, 116, 104), batch_size=16, num_threads=2, device_id=None)

Input `image_bytes`; outputs `image` uint8 (3, H, W) RGB and `letterbox` float32 (4,): original h and w,
resized h and w. Triton's dali backend maps outputs by position, so their order is part of the contract (OUTPUTS).
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
    height, width = size
    encoded = fn.external_source(device="cpu", name=INPUT, dtype=types.UINT8, ndim=1)
    # Read from the header, so that the sizes are on the CPU whatever the decoder's device is.
    shape = fn.cast(fn.peek_image_shape(encoded), dtype=types.FLOAT)
    original_h, original_w = shape[0], shape[1]
    ratio = dmath.min(height / original_h, width / original_w)
    resized_h, resized_w = letterbox_pixels(original_h, ratio), letterbox_pixels(original_w, ratio)

    image = fn.decoders.image(encoded, device=decoder, output_type=types.RGB)
    image = fn.resize(
        image,
        resize_x=resized_w,
        resize_y=resized_h,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
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


preprocess_pipeline = pipeline_def(output_dtype=OUTPUT_TYPES, output_ndim=OUTPUT_RANKS)(preprocess_graph)


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
