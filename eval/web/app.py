"""The page's ASGI application: its files, one image's boxes, a preview, and the server's state.

    uvicorn.run(create_app(Gateway("localhost:8001")))

    GET  /              the page; /static/... its parts
    POST /api/detect    an image's bytes -> boxes and times, or {"kind", "message"} with the fitting status
    POST /api/preview   an image's bytes -> an upright JPEG, for what browsers can't show (TIFF)
    GET  /api/status    state, model, counts and times of the server

Both POSTs take ?tile=auto or ?tile=SIDE for an image of any size. It keeps nothing: only such an image is written,
to a file that has no name by the time it is answered. Videos and cameras are the browser's; their frames come as
images.
"""

import asyncio
import contextlib
import io
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from retinaserve.eval.tiled import Tiling
from retinaserve.eval.web.gateway import Answer, Gateway, served_json
from retinaserve.eval.web.guard import BODY_SECONDS, Guard, Slow, TooLarge, save_body
from retinaserve.training.detections import ErrorKind, ImageError
from retinaserve.training.errors import UserError
from retinaserve.training.images.draw import Colour, colour_of, open_image, text_colour
from retinaserve.training.images.raster import open_raster
from retinaserve.training.pixels import admit

STATIC = Path(__file__).parent / "static"
MOST_BYTES = 32 * 1024 * 1024  # of an image, where the server does not tell
MOST_PIXELS = 64_000_000
MOST_TILED_BYTES, TILED_SECONDS = 2 * 1024**3, 600.0  # of an image that is cut: on the disk
MOST_UPLOADS = 16  # images held at a time: half a gigabyte at most
PREVIEW_SIDE, PREVIEW_QUALITY = 2560, 88
STATUS: Mapping[ErrorKind, int] = {"bad_image": 400, "server": 502, "overloaded": 503, "timeout": 504}


def create_app(gateway: Gateway, *, hosts: frozenset[str] = frozenset()) -> Starlette:
    """Return the application; `hosts` are further names it may be called by."""
    page = _Page(gateway)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await gateway.open()
        try:
            yield
        finally:
            await gateway.close()

    return Starlette(
        routes=[
            Route("/", page.index),
            Route("/api/status", page.status),
            Route("/api/detect", page.detect, methods=["POST"]),
            Route("/api/preview", page.preview, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
        lifespan=lifespan,
    )


class _Page:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._uploads = 0
        self._previewing = asyncio.Semaphore(1)  # a decoded image is 190 MB at most

    async def index(self, _: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def status(self, _: Request) -> Response:
        return JSONResponse(await self._gateway.status())

    async def detect(self, request: Request) -> Response:
        async with self._received(request) as image:
            try:
                if isinstance(image, Response):
                    return image
                if isinstance(image, bytes):
                    answer = await self._gateway.detect(image)
                else:
                    answer = await self._gateway.detect_tiled(image, tiling_of(request))
            except UserError as error:
                return _problem(503, "down", error.message, hint=error.hint)
        if isinstance(answer, ImageError):
            return _problem(STATUS[answer.kind], answer.kind, answer.message)
        return JSONResponse(answer_json(answer))

    async def preview(self, request: Request) -> Response:
        async with self._received(request) as image:
            if isinstance(image, Response):
                return image
            async with self._previewing:
                jpeg = await asyncio.to_thread(preview_jpeg, image, await self._value_range())
        if jpeg is None:
            return _problem(400, "bad_image", "this image can't be shown")
        return Response(jpeg, media_type="image/jpeg")

    @contextlib.asynccontextmanager
    async def _received(self, request: Request) -> AsyncIterator[bytes | Path | Response]:
        """Give an image's bytes, the file of one that is to be cut, or why there is neither."""
        if self._uploads >= MOST_UPLOADS:
            yield _problem(503, "overloaded", f"{MOST_UPLOADS} images are under way already")
            return
        self._uploads += 1
        tiled = "tile" in request.query_params
        limit = MOST_TILED_BYTES if tiled else await self._most_bytes()
        image: bytes | Path | Response
        try:
            with tempfile.NamedTemporaryFile(prefix="retinaserve-") if tiled else io.BytesIO() as file:
                try:
                    tiling_of(request)
                    await save_body(request, file, limit, seconds=TILED_SECONDS if tiled else BODY_SECONDS)
                    file.flush()
                    image = Path(file.name) if tiled else file.getvalue()
                except UserError as error:
                    image = _problem(400, "bad_image", error.message, hint=error.hint)
                except TooLarge:
                    message = f"the file is larger than the server takes ({limit / 2**20:.3g} MiB)"
                    image = _problem(413, "bad_image", message)
                except Slow:
                    image = _problem(408, "timeout", "the image did not arrive in time")
                yield image
        finally:
            self._uploads -= 1

    async def _most_bytes(self) -> int:
        try:
            return (await self._gateway.client()).served.max_image_bytes or MOST_BYTES
        except UserError:
            return MOST_BYTES

    async def _value_range(self) -> tuple[int, int] | None:
        try:
            return (await self._gateway.client()).served.value_range
        except UserError:
            return None


def tiling_of(request: Request) -> Tiling:
    """Return what ?tile= says. Raises UserError for anything but auto or a side in pixels."""
    tile = request.query_params.get("tile", "auto")
    if tile != "auto" and not tile.isdecimal():
        raise UserError(f"tile={tile} is neither auto nor a side in pixels")
    return Tiling(None if tile == "auto" else (int(tile), int(tile)))


def answer_json(answer: Answer) -> dict[str, Any]:
    """Return an answer for JSON: sizes and boxes in the upright image's pixels, hundredths; classes by index."""
    found = answer.detections
    height, width = found.size or (None, None)
    # Of each class and of letters on it: as in annotated images.
    grounds = [colour_of(index) for index in range(len(answer.served.classes))]
    colours = [(_css(ground), _css(text_colour(ground))) for ground in grounds]
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
    return {
        "width": width,
        "height": height,
        "detections": [
            {"index": index, "score": round(score, 4), "box": [round(value, 2) for value in box]}
            for box, score, index in rows
        ],
        "model": {**served_json(answer.served), "colours": colours},
        "timing": answer.timing and asdict(answer.timing),
    }


def preview_jpeg(image: bytes | Path, value_range: tuple[int, int] | None = None) -> bytes | None:
    """Return an upright JPEG of at most PREVIEW_SIDE pixels a side, or None for what can't be read."""
    try:
        if isinstance(image, Path):  # of any size
            with open_raster(image) as raster:
                upright = raster.reduced(PREVIEW_SIDE)
        elif admit(image, max_bytes=len(image), max_pixels=MOST_PIXELS):
            return None
        else:
            upright = open_image(image, value_range)
    except (OSError, UserError):
        return None
    upright.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    upright.save(buffer, "JPEG", quality=PREVIEW_QUALITY)
    return buffer.getvalue()


def _css(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _problem(status: int, kind: str, message: str, **more: str) -> JSONResponse:
    return JSONResponse({"kind": kind, "message": message, **more}, status_code=status)
