"""A folder of images as people have them, trained on, served, drawn and previewed: do all see the same?

    python -m retinaserve.scripts.lab.mixed runs/mixed

Shapes are drawn and stored as phones, scanners, microscopes and the web store images. The average precision that
training validates with is compared with the server's; the exit code is 1 where they are more than 0.005 apart.
"""

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from retinaserve.eval.client.client import Client
from retinaserve.eval.report.report import evaluate_detector
from retinaserve.eval.web.app import preview_jpeg
from retinaserve.scripts.demo import CHECKPOINT
from retinaserve.scripts.lab import run
from retinaserve.scripts.server.triton import Server
from retinaserve.scripts.shapes.draw import draw_dataset
from retinaserve.training.checkpoint import load_model
from retinaserve.training.coco import Annotations
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.draw import open_image
from retinaserve.training.files import write_json
from retinaserve.training.pixels.container import heif
from retinaserve.training.pixels.orientation import ORIENTATION
from retinaserve.training.trainer.validate import predict, score

IMAGES, SEED, ITERATIONS, APART = 200, 3, 40, 0.005
SIDEWAYS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="1"/>'


def held(image: Image.Image, kind: str, orientation: int, **options: Any) -> bytes:
    """Encode an image as a device stores it that is held in another way: turned, with EXIF."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(image.transpose(SIDEWAYS[orientation]), kind, exif=exif, **options)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep(image: Image.Image) -> Image.Image:
    """Return a grey image of 16 bits."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def moving(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode an image as the first of two frames, each of its own colours."""
    return encode(image, kind, save_all=True, append_images=[image.rotate(180)], duration=100, **options)


KINDS: Mapping[str, tuple[str, Callable[[Image.Image], bytes]]] = {
    "phone": (".jpg", lambda image: encode(image, "JPEG", quality=90)),
    "phone, held sideways": (".jpg", lambda image: held(image, "JPEG", 6, quality=90)),
    "phone, upside down": (".JPG", lambda image: held(image, "JPEG", 3, quality=90)),
    "phone, XMP left behind": (".jpeg", lambda image: held(image, "JPEG", 8, quality=90, xmp=XMP)),
    "phone, HEIC": (".heic", lambda image: encode(image, "HEIF", quality=90)),
    "scanner, TIFF": (".tif", lambda image: encode(image, "TIFF", compression="tiff_lzw")),
    "scanner, turned TIFF": (".tiff", lambda image: held(image, "TIFF", 6)),
    "scanner, grey": (".jfif", lambda image: encode(image.convert("L"), "JPEG")),
    "press, CMYK": (".jpg", lambda image: encode(image.convert("CMYK"), "JPEG", quality=95)),
    "microscope, 16 bits": (".tif", lambda image: encode(deep(image), "TIFF", compression="tiff_adobe_deflate")),
    "X-ray, 16 bits": (".png", lambda image: encode(deep(image), "PNG")),
    "screen, alpha": (".png", lambda image: encode(image.convert("RGBA"), "PNG")),
    "screen, palette": (".png", lambda image: encode(image.quantize(128), "PNG")),
    "web, moving": (".webp", lambda image: moving(image, "WEBP", lossless=True)),
    "web, GIF": (".gif", lambda image: encode(image.quantize(128), "GIF")),
    "web, AVIF": (".avif", lambda image: encode(image, "AVIF", quality=90)),
    "old, BMP": (".bmp", lambda image: encode(image, "BMP")),
}


def draw(folder: Path) -> None:
    """Draw the set into `folder`, each image of the next kind. Its annotations name kinds in the file names."""
    drawn = draw_dataset(folder, images=IMAGES, seed=SEED)
    labels = json.loads(drawn.annotations.read_text())
    heif()
    for index, entry in enumerate(labels["images"]):
        name, (suffix, store) = list(KINDS.items())[index % len(KINDS)]
        path = drawn.images / entry["file_name"]
        image = open_image(path)
        path.unlink()
        entry["file_name"] = f"{index:03d} {name.replace(',', '')}{suffix}"
        (drawn.images / entry["file_name"]).write_bytes(store(image))
    (drawn.images / "notes.txt").write_text("not an image")
    write_json(drawn.annotations, labels)


def command(*words: object) -> None:
    """Run a `retinaserve` command."""
    subprocess.run([sys.executable, "-m", "retinaserve", *map(str, words)], check=True)


def main() -> None:
    """Draw, train, serve, score, draw boxes and preview; print the record and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    images, annotations, model = folder / "images", folder / "annotations.json", folder / "model.pth"
    draw(folder)
    labelled = ("--images", images, "--annotations", annotations)
    command("data", "check", *labelled, "--json", folder / "check.json")
    command("train", model, "--config", "shapes", *labelled, "--fine-tune", CHECKPOINT, "--iters", ITERATIONS,
            "--override")  # fmt: skip
    (spec, network), dataset = load_model(model), CocoDataset(images, annotations)
    validated = score(dataset, spec, predict(network.eval(), spec, dataset, range(len(dataset)))).ap
    command("build", model, "--output", folder / "repository")
    with Server(folder / "repository") as server, Client(server.grpc_url) as client:
        report = evaluate_detector(client, Annotations.load(annotations), images)
        command("predict", images, "--server", server.grpc_url, "--output", folder / "annotated", "--quiet")
    sizes = {path: open_image(path).size for path in report.files.values()}
    record = {
        "images": len(report.files),
        "kinds": len(KINDS),
        "ap_validated": validated,
        "ap_served": report.scores.ap,
        "refused": len(report.errors),
        "drawn": sum(path.is_file() for path in (folder / "annotated").iterdir()),
        "previewed": sum(_previewed(path) == size for path, size in sizes.items()),
    }
    write_json(folder / "mixed.json", record)
    print(json.dumps(record, indent=1))
    if abs(validated - (report.scores.ap or 0.0)) > APART or report.errors:
        sys.exit(1)


def _previewed(path: Path) -> tuple[int, int] | None:
    jpeg = preview_jpeg(path.read_bytes())
    return Image.open(io.BytesIO(jpeg)).size if jpeg else None


if __name__ == "__main__":
    run(main)
