"""A detector that lives behind a Triton server: encoded images in, boxes in their own pixels out.

    with Client("localhost:8001") as client:                    # gRPC; "http://localhost:8000" for HTTP
        print(client.class_names)
        for answer in client.predict_many(files, concurrency=8):
            ...                                                 # Detections, or an ImageError

    async with AsyncClient("localhost:8001") as client:
        detections = await client.predict([jpeg])

Images are sent as they are; decoding, scaling and boxes are the server's. Class names and limits are read
from the server. `Client` is `AsyncClient` on an event loop in a thread of its own, so it may be used from any
thread. Several equal servers may be named, "gpu-1:8001,gpu-2:8001": requests go to them in turn, and one that a
dying server took with it is sent again to another, since asking twice for boxes does no harm.
"""

import asyncio
import random
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from retinaserve.eval.client.server_info import Identity, ModelStatistics, ServedModel, by_model, parameters_of
from retinaserve.eval.client.servers import Replica, Replicas, Slots
from retinaserve.eval.client.transport import (
    Endpoint,
    Protocols,
    ServerError,
    TlsFiles,
    Transport,
    image_error,
    no_server,
)
from retinaserve.eval.tiled import TiledDetector, Tiling
from retinaserve.plugins.tiles import OVERLAP
from retinaserve.training.detections import TAKEN, Detections, ImageError, answered
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import DETECTOR

__all__ = ["Answer", "AsyncClient", "Client"]

Answer = Detections | ImageError
T = TypeVar("T")

# An image that an overloaded server refused is sent again after about 0.1, 0.2, 0.4 ... 1.6 s, for ten seconds at
# most. The time it waits for its turn among the client's own is not counted.
FIRST_PAUSE, LONGEST_PAUSE, RETRY_SECONDS = 0.1, 1.6, 10.0
AHEAD = 2  # images are held for each in flight: a slow one must not idle the others behind it
CONTROL_TIMEOUT = 5.0  # seconds for questions that need no inference


class _Served:
    """What both clients know of their servers, once they are open."""

    _replicas: Replicas
    _served: ServedModel | None = None

    @property
    def endpoint(self) -> Endpoint:
        """Where the server is and what it speaks; of several, the first."""
        return self._replicas.all[0].endpoint

    @property
    def servers(self) -> str:
        """All of them, as --server takes it."""
        return ",".join(str(replica.endpoint) for replica in self._replicas.all)

    @property
    def served(self) -> ServedModel:
        """The model's classes, size and limits, as the server told them."""
        if self._served is None:
            raise RuntimeError("the client is not open; use `async with AsyncClient(...) as client`")
        return self._served

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class index."""
        return self.served.classes

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The COCO category of each class index."""
        return self.served.category_ids

    @property
    def value_range(self) -> tuple[int, int] | None:
        """Black and white of samples of more than 8 bits; None for their depth's range."""
        return self.served.value_range

    @property
    def tile_size(self) -> tuple[int, int]:
        """(h, w) of the tiles that the model was trained on, or of its input. Raises UserError for neither."""
        size = self.served.tile or self.served.size
        if size is None:
            raise UserError(f"{self.servers} does not tell its model's size", "name the tile", code=Exit.USAGE)
        return size


class AsyncClient(_Served):
    """The client for asyncio; open it with `async with`. `timeout` is an image's, retries included."""

    def __init__(
        self,
        server: str = "localhost:8001",
        *,
        protocol: Protocols | None = None,
        model: str = DETECTOR,
        timeout: float = 30.0,
        wait: float = 0.0,
        concurrency: int = 8,
        tls: TlsFiles | None = None,
    ) -> None:
        """Name the server, or several with commas.

        `wait` is how many seconds it may take to become ready, `concurrency` the default.
        """
        names = [name.strip() for name in server.split(",")]
        self._replicas = Replicas([Endpoint.parse(name, protocol, tls=tls) for name in names])
        self.model_name = model
        self.timeout = timeout
        self.concurrency = concurrency
        self.on_answer: Callable[[float], None] | None = None
        """Called with the seconds each answered image took, from its turn to its answer, retries included."""
        self._wait = wait

    async def __aenter__(self) -> Self:
        """Connect, wait for the model and read its config. Raises UserError when there is no such server."""
        self._replicas.open(concurrency=max(self.concurrency, 64))
        try:
            self._served = await self._ready_model()
        except BaseException:
            await self._replicas.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._replicas.close()

    async def predict(self, images: Sequence[bytes]) -> list[Detections]:
        """Return the detections of each encoded image. Raises UserError for the first that has none."""
        found: list[Detections] = []
        async for answer in self.predict_many(images):
            found.append(answered(answer, len(found) + 1))  # the first error ends it: the rest is not sent
        return found

    async def predict_many(
        self, images: Iterable[bytes | ImageError], *, concurrency: int | None = None
    ) -> AsyncIterator[Answer]:
        """Yield an answer per image, in order, with `concurrency` requests in flight, fewer if they are too many.

        `images` is read at most twice `concurrency` ahead of the answers. What is wrong with one image is
        its answer; a server that is gone raises UserError.
        """
        slots = Slots(concurrency or self.concurrency)
        window = AHEAD * slots.most
        source, tasks = iter(images), deque[asyncio.Task[Answer]]()
        try:
            while True:
                tasks.extend(
                    asyncio.create_task(self.answer(image, slots)) for image in islice(source, window - len(tasks))
                )
                if not tasks:
                    return
                yield await tasks[0]
                tasks.popleft()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def answer(self, image: bytes | ImageError, slots: Slots | None = None) -> Answer:
        """Return one image's answer, sent when a slot is free. Raises UserError when the server is gone."""
        if isinstance(image, ImageError):
            return image
        limit = self.served.max_image_bytes
        if limit and len(image) > limit:
            return ImageError(f"the file has {len(image)} bytes, more than the server takes ({limit})")
        try:
            return await self._infer(image, slots or Slots(1))
        except ServerError as error:
            if error.status == "not_found":
                raise no_server(error, self.endpoint, self.model_name) from None
            return image_error(error, timeout=self.timeout)

    async def statistics(self) -> dict[str, ModelStatistics]:
        """Return what the server counted so far, by model; of several, the first that lives."""
        with self._asking(self._replicas.first()) as transport:
            return by_model(await transport.statistics(timeout=CONTROL_TIMEOUT))

    async def identity(self) -> Identity:
        """Return which model the server has, and in what, as far as it says; of several, the first that lives."""
        with self._asking(self._replicas.first()) as transport:
            version = await transport.version(timeout=CONTROL_TIMEOUT)
            names = (self.model_name, *self.served.steps)
            configs = {name: await transport.config(name, timeout=CONTROL_TIMEOUT) for name in names}
            entries = await transport.statistics(timeout=CONTROL_TIMEOUT)
        return Identity.of_server(configs, entries, server=version, address=str(self.endpoint))

    async def parameters(self, model: str) -> dict[str, str]:
        """Return what the config of another model, such as a step of the ensemble, has as parameters."""
        with self._asking(self._replicas.first()) as transport:
            return parameters_of(await transport.config(model, timeout=CONTROL_TIMEOUT))

    @contextmanager
    def _asking(self, replica: Replica) -> Iterator[Transport]:
        """Give the way to a server; what goes wrong there is a UserError."""
        try:
            yield replica.transport
        except ServerError as error:
            raise no_server(error, replica.endpoint, self.model_name) from None

    async def _infer(self, image: bytes, slots: Slots) -> Detections:
        """Send an image until it is answered, its time is over, or it was refused for RETRY_SECONDS."""
        clock = asyncio.get_running_loop().time
        spent, refused_for, pause = 0.0, 0.0, FIRST_PAUSE
        while True:
            async with slots:
                start, replica = clock(), self._replicas.next()
                call = replica.transport.infer(self.model_name, image, timeout=self.timeout - spent)
                try:
                    result = await call
                    slots.answered()
                    if self.on_answer:
                        self.on_answer(spent + clock() - start)
                    return Detections.of_outputs({name: result.as_numpy(name)[0] for name in TAKEN})
                except ServerError as error:
                    if error.status != "unavailable":
                        raise
                    # A copy: the error holds this frame, and would keep the connection until the next collection.
                    refusal = ServerError(error.status, error.message)
                # A full queue and a dead server have the same status; only one of them is still alive.
                live = await self._is_live(replica)
                spent += clock() - start
                if live:
                    slots.refused()
                elif not self._replicas.set_aside(replica):
                    raise no_server(refusal, replica.endpoint, self.model_name)
                elif spent < self.timeout:
                    continue
            # Jitter, so that the requests a full queue turned away do not all come back together.
            wait = pause * random.uniform(0.5, 1.0)
            if spent + wait >= self.timeout:
                raise ServerError("timeout", refusal.message)
            if refused_for + wait > RETRY_SECONDS:
                raise refusal
            await asyncio.sleep(wait)
            spent, refused_for, pause = spent + wait, refused_for + wait, min(2 * pause, LONGEST_PAUSE)

    @staticmethod
    async def _is_live(replica: Replica) -> bool:
        try:
            return await replica.transport.live(timeout=CONTROL_TIMEOUT)
        except ServerError:
            return False

    async def _ready_model(self) -> ServedModel:
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._wait
        while True:
            problems = []
            for replica in self._replicas.all:
                try:
                    return await self._model_of(replica)
                except UserError as problem:
                    self._replicas.set_aside(replica)
                    problems.append(problem)
            if clock() >= deadline:
                raise problems[0]
            await asyncio.sleep(min(0.2, max(0.0, deadline - clock())))

    async def _model_of(self, replica: Replica) -> ServedModel:
        with self._asking(replica) as transport:
            ready = await transport.ready(self.model_name, timeout=CONTROL_TIMEOUT)
            # An unknown model is not ready either; asked for its config, the server says which it is.
            config = await transport.config(self.model_name, timeout=CONTROL_TIMEOUT)
        if not ready:
            waited = f" after {self._wait:g} s" if self._wait else ""
            raise UserError(
                f"{replica.endpoint}: model {self.model_name!r} is not ready{waited}",
                "see the server's log; it may still be loading",
            )
        return ServedModel.from_config(config, source=str(replica.endpoint))


class Client(_Served):
    """The blocking client: a Detector. Opens on construction, close it with `with` or `close()`."""

    def __init__(
        self,
        server: str = "localhost:8001",
        *,
        protocol: Protocols | None = None,
        model: str = DETECTOR,
        timeout: float = 30.0,
        wait: float = 0.0,
        concurrency: int = 8,
        tls: TlsFiles | None = None,
    ) -> None:
        """Connect, as `AsyncClient` does. Raises UserError when there is no such server or model."""
        self._client = AsyncClient(
            server, protocol=protocol, model=model, timeout=timeout, wait=wait, concurrency=concurrency, tls=tls
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="triton-client", daemon=True)
        self._thread.start()
        self._open = False
        try:
            self._start(self._client.__aenter__()).result()
            self._replicas, self._served = self._client._replicas, self._client.served
            self._open = True
        except BaseException:
            self._stop_loop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        try:
            self._start(self._client.__aexit__()).result()
        finally:
            self._stop_loop()

    def predict(
        self,
        images: Sequence[bytes | Path],
        *,
        tile: tuple[int, int] | Literal["auto"] | None = None,
        overlap: float = OVERLAP,
        whole: bool = False,
    ) -> list[Detections]:
        """Return the detections of each image, encoded or in a file. Raises UserError for the first that has none.

        With `tile` (h, w), or "auto" for the model's own size, an image of any size is cut; see eval/tiled.py.
        """
        if tile is not None:
            return TiledDetector(self, Tiling(None if tile == "auto" else tile, overlap, whole)).predict(images)
        encoded = (image.read_bytes() if isinstance(image, Path) else image for image in images)
        return [answered(answer, number) for number, answer in enumerate(self.predict_many(encoded), 1)]

    def predict_many(
        self, images: Iterable[bytes | ImageError], *, concurrency: int | None = None
    ) -> Iterator[Answer]:
        """Yield an answer per image, in order; see `AsyncClient.predict_many`. `images` is read by the caller."""
        slots = Slots(concurrency or self._client.concurrency)
        window = AHEAD * slots.most
        source, waiting = iter(images), deque[Future[Answer]]()
        try:
            while True:
                for image in islice(source, window - len(waiting)):
                    waiting.append(self._start(self._client.answer(image, slots)))
                if not waiting:
                    return
                yield waiting[0].result()
                waiting.popleft()
        finally:
            for future in waiting:
                future.cancel()

    def on_answer(self, call: Callable[[float], None]) -> None:
        """Have `call` told the seconds that each answered image took, in the client's thread."""
        self._client.on_answer = call

    def identity(self) -> Identity:
        """Return which model the server has, and in what, as far as it says; of several, the first that lives."""
        return self._start(self._client.identity()).result()

    def statistics(self) -> dict[str, ModelStatistics]:
        """Return what the server counted so far, by model."""
        return self._start(self._client.statistics()).result()

    def parameters(self, model: str) -> dict[str, str]:
        """Return the parameters of another model's config; see `AsyncClient.parameters`."""
        return self._start(self._client.parameters(model)).result()

    def _start(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def _stop_loop(self) -> None:
        # Cancelled requests must still run to their end, or the loop closes over open connections.
        self._start(_drained()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _drained() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
