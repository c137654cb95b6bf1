"""The page's ASGI application: its files, one image's boxes, a preview, and the server's state.

    uvicorn.run(create_app(Gateway("localhost:8001")))

    GET  /              the page; /static/... its parts
    POST /api/detect    an image's bytes -> boxes and times, or {"kind", "message"} with the fitting status
    POST /api/preview   an image's bytes -> an upright JPEG, for what browsers can't show (TIFF)
    GET  /api/status    state, model, counts and times of the server

It keeps nothing: no image is written anywhere.
"""

import asyncio
import contextlib
import io
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

from retinaserve.eval.web.gateway import Answer, Gateway, served_json
from retinaserve.eval.web.guard import Guard, Slow, TooLarge, read_body
from retinaserve.training.detections import ErrorKind, ImageError
from retinaserve.training.draw import Colour, colour_of, open_image, text_colour
from retinaserve.training.errors import UserError
from retinaserve.training.pixels import admit

STATIC = Path(__file__).parent / "static"
MOST_BYTES = 32 * 1024 * 1024  # of an image, where the server does not tell
MOST_PIXELS = 64_000_000
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
        image = await self._image(request)
        if isinstance(image, Response):
            return image
        with self._held():
            try:
                answer = await self._gateway.detect(image)
            except UserError as error:
                return _problem(503, "down", error.message, hint=error.hint)
        if isinstance(answer, ImageError):
            return _problem(STATUS[answer.kind], answer.kind, answer.message)
        return JSONResponse(answer_json(answer))

    async def preview(self, request: Request) -> Response:
        image = await self._image(request)
        if isinstance(image, Response):
            return image
        with self._held():
            async with self._previewing:
                jpeg = await asyncio.to_thread(preview_jpeg, image, await self._value_range())
        if jpeg is None:
            return _problem(400, "bad_image", "this image can't be shown")
        return Response(jpeg, media_type="image/jpeg")

    async def _image(self, request: Request) -> bytes | Response:
        if self._uploads >= MOST_UPLOADS:
            return _problem(503, "overloaded", f"{MOST_UPLOADS} images are under way already")
        limit = await self._most_bytes()
        with self._held():
            try:
                return await read_body(request, limit)
            except TooLarge:
                message = f"the file is larger than the server takes ({limit / 2**20:.3g} MiB)"
                return _problem(413, "bad_image", message)
            except Slow:
                return _problem(408, "timeout", "the image did not arrive in time")

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

    @contextlib.contextmanager
    def _held(self) -> Any:
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1


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


def preview_jpeg(image: bytes, value_range: tuple[int, int] | None = None) -> bytes | None:
    """Return an upright JPEG of at most PREVIEW_SIDE pixels a side, or None for what can't be read."""
    if admit(image, max_bytes=len(image), max_pixels=MOST_PIXELS):
        return None
    try:
        upright = open_image(image, value_range)
    except OSError:
        return None
    upright.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    upright.save(buffer, "JPEG", quality=PREVIEW_QUALITY)
    return buffer.getvalue()


def _css(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _problem(status: int, kind: str, message: str, **more: str) -> JSONResponse:
    return JSONResponse({"kind": kind, "message": message, **more}, status_code=status)
