"""Encoded images for tests: every format the server takes, and a dozen ways to be bad."""

import io

import numpy as np
from PIL import Image


def checker(width: int, height: int, *, seed: int = 0, cell: int = 40) -> Image.Image:
    """Draw a coloured checkerboard: flat areas survive JPEG, edges show a wrong resize."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 255, (-(-height // cell), -(-width // cell), 3)).astype(np.uint8)
    return Image.fromarray(np.kron(cells, np.ones((cell, cell, 1), np.uint8))[:height, :width])


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """Encode an image; `orientation` writes an EXIF tag."""
    buffer = io.BytesIO()
    orientation = options.pop("orientation", None)
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def good_formats() -> dict[str, bytes]:
    """Return the same 320 x 200 image in every format and colour layout that has to be read."""
    base = checker(320, 200)
    return {
        "jpeg": encode(base, quality=95, subsampling=0),
        "jpeg progressive": encode(base, quality=95, subsampling=0, progressive=True),
        "jpeg cmyk": encode(base.convert("CMYK"), quality=95, subsampling=0),
        "png": encode(base, "PNG"),
        "png alpha": encode(base.convert("RGBA"), "PNG"),
        "png palette": encode(base.quantize(64), "PNG"),
        "webp": encode(base, "WEBP", lossless=True),
        "webp alpha": encode(base.convert("RGBA"), "WEBP", lossless=True),
        "bmp": encode(base, "BMP"),
        "tiff": encode(base, "TIFF"),
        "tiff lzw": encode(base, "TIFF", compression="tiff_lzw"),
        "jpeg, padded with zeros": encode(base, quality=95, subsampling=0) + bytes(100),
    }


def bad_images() -> dict[str, tuple[bytes, str]]:
    """Return broken data by kind, each with words that its error message has to contain."""
    base = checker(320, 200)
    jpeg, png = encode(base), encode(base, "PNG")
    tiff, webp = encode(base, "TIFF"), encode(base, "WEBP", lossless=True)
    return {
        "empty": (b"", "empty"),
        "one byte": (b"\xff", "not an image"),
        "zeros": (bytes(5000), "zeros"),
        "noise": (np.random.default_rng(0).bytes(5000), "not an image"),
        "text": (b"Dear server, please find my picture attached.\n", "text, not an image"),
        "html": (b"<!DOCTYPE html><html><body>404</body></html>", "text, not an image"),
        "pdf": (b"%PDF-1.7\n" + bytes(200), "PDF"),
        "gif truncated": (encode(base.quantize(16), "GIF")[:2000], "GIF image can't be decoded"),
        "heic": (b"\0\0\0\x18ftypheic" + bytes(200), "HEIC"),
        "jpeg 2000": (encode(base, "JPEG2000"), "a JPEG 2000"),
        "jpeg truncated": (jpeg[: len(jpeg) // 2], "truncated"),
        "jpeg without its end": (jpeg[:-2], "truncated"),
        "jpeg header only": (jpeg[:20], "truncated"),
        "png truncated": (png[: len(png) // 2], "truncated"),
        "webp truncated": (encode(base, "WEBP")[:-300], "truncated"),
        "bmp truncated": (encode(base, "BMP")[:-5000], "truncated"),
        "tiff truncated": (tiff[: len(tiff) // 2], "truncated"),
        "png corrupt": (png[:200] + bytes(200) + png[400:], "the checksum of its IDAT chunk is wrong"),
        "webp corrupt": (webp[:60] + bytes(60) + webp[120:], "can't be decoded"),
    }
