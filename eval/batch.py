"""Images by the million: any fsspec address in, Parquet out, on Ray's workers, going on where a run was killed.

    plan = Plan.make("s3://bucket/images", "s3://bucket/boxes", part=500, model="sha256 of it")
    for done in run(plan, model=Path("model.onnx"), workers=4):
        print(done)                                 # Part(number, images, failed)
    evaluate_detector(Recorded.read("s3://bucket/boxes"), truth, Path("val/images"))     # scored like a server

The inputs are listed once (sources.py) and written down beside the output; `part` of them after the other become
one Parquet file, put in place whole. A run skips the parts that are there, so no image is written twice and a
killed run costs the parts it was at. An image that can't be answered is a row with its error.

Ray runs actors here, not Ray Data, which adds to what is there on a second run, drops a block for a bad row, and
guesses a schema from each block.
"""

import io
import json
import os
import socket
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from retinaserve.eval.sources import bare, list_images, open_place, reached, read_images
from retinaserve.training.detections import Detections, Detector, ImageError, answered
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import staging, write_bytes

INPUTS, PARTS = "_inputs.parquet", "part-{:06d}.parquet"  # readers of Parquet skip names that begin with _
STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss"})  # show an object when it is complete
CLASSES = b"retinaserve"  # in the metadata of a part: the detector's class names and categories, as JSON
LIVES = 4  # of a worker at one part: where a machine went or memory ran out, another one takes its place
LONGEST_FOLDER = 30  # of temporary files: Ray's sockets lie 70 characters below, and Linux takes 107 in all
CLUSTER = "--ray takes HOST:6379, where `ray start --head` ran, or auto"


def schema() -> Any:
    """Return the schema of every part: it is never inferred, since a part without boxes would get another."""
    import pyarrow as pa

    return pa.schema(
        [
            ("uri", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("boxes", pa.list_(pa.list_(pa.float32(), 4))),  # x1 y1 x2 y2
            ("scores", pa.list_(pa.float32())),
            ("classes", pa.list_(pa.string())),
            ("error", pa.string()),
        ]
    )


@dataclass(frozen=True)
class Part:
    """A part that was written."""

    number: int
    images: int
    failed: int


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be done: all images, in order (a table of sources.py), and how many make a part."""

    source: str
    output: str
    images: Any
    part: int

    @classmethod
    def make(cls, source: str, output: str, *, part: int, model: str = "") -> "Plan":
        """List the source, or read what an earlier run listed. Raises UserError for a place without images, and
        for an output of another source or model.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        files, folder = open_place(output)
        listed, wanted = f"{folder}/{INPUTS}", {"source": bare(source), "part": part, "model": model}
        place = bare(output)
        with reached(output):
            there = files.exists(listed)
        if not there:
            table = list_images(source)[1].replace_schema_metadata({"retinaserve": json.dumps(wanted)})
            with reached(output):
                files.makedirs(folder, exist_ok=True)
                _put(files, listed, table, first=True)
        try:
            with reached(output):
                table = pq.read_table(io.BytesIO(files.cat_file(listed)))
            known = json.loads((table.schema.metadata or {})[b"retinaserve"])
        except (KeyError, pa.ArrowInvalid):
            problem = f"{place}/{INPUTS} is not of `retinaserve batch`, or damaged"
            raise UserError(problem, "name another output", code=Exit.BAD_DATA) from None
        if known["source"] != wanted["source"]:
            problem = f"{place} holds the boxes of {known['source']}, not of {wanted['source']}"
        elif known["model"] != model:
            problem = f"{place} holds the boxes of another model"
        else:
            return cls(source, output, table, known["part"])
        raise UserError(problem, "name another output", code=Exit.USAGE)

    def parts(self) -> int:
        """Return how many parts there are."""
        return -(-len(self.images) // self.part)

    def waiting(self) -> list[int]:
        """Return the parts that are not there yet."""
        files, folder = open_place(self.output)
        files.invalidate_cache()
        there = {path.rsplit("/", 1)[-1] for path in files.find(folder)}
        return [number for number in range(self.parts()) if PARTS.format(number) not in there]

    def images_of(self, number: int) -> Any:
        """Return the images of a part."""
        return self.images.slice(number * self.part, self.part)


def write_part(source: str, output: str, number: int, images: Any, detector: Detector) -> Part:
    """Answer the images of a part and write it. Raises UserError when a server or a store stops answering."""
    import pyarrow as pa

    answers = detector.predict_many(read_images(open_place(source)[0], images))
    uris = images["uri"].to_pylist()
    rows = [_row(uri, answer, detector.class_names) for uri, answer in zip(uris, answers, strict=True)]
    files, folder = open_place(output)
    known = {"classes": detector.class_names, "category_ids": detector.category_ids}
    table = pa.Table.from_pylist(rows, schema=schema().with_metadata({CLASSES: json.dumps(known)}))
    with reached(output):
        _put(files, f"{folder}/{PARTS.format(number)}", table)
    return Part(number, len(rows), sum(row["error"] is not None for row in rows))


def run(
    plan: Plan, *, model: Path | None, server: str = "", workers: int = 0, address: str = ""
) -> Iterator[Part]:
    """Yield the parts as they are written, in any order.

    Each worker holds the model, which is sent to it, or asks the server. `address` is a Ray cluster's; without one
    Ray runs here. `workers` 0 are as many as there are cores, or GPUs for a plan.
    """
    waiting = plan.waiting()
    if not waiting:
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: whoever wants that runs all of it by `nice`
    import ray
    from ray.util import ActorPool

    began = not ray.is_initialized()
    if began:
        _begin(address, workers)
    try:
        on_gpu = model is not None and model.suffix == ".plan"
        needed, there = ("CPU", "GPU") if on_gpu else ("CPU",), ray.cluster_resources()
        most = min(int(there.get(kind, 0)) for kind in needed)
        if not most:
            problem = f"there is no {needed[-1]} in Ray's cluster" if address else f"there is no {needed[-1]} here"
            raise UserError(problem, "a plan runs on a GPU; a checkpoint or .onnx needs none" if on_gpu else "")
        workers = min(workers or most, most)  # another would wait for a core for ever, with a part
        beside = [model, Path(f"{model}.json")] if model else []  # a plan's manifest
        # In a list, which Ray leaves packed: a worker asks for it once, as does one in another's place.
        sent = [ray.put({file.name: file.read_bytes() for file in beside if file.is_file()})]
        remote = ray.remote(num_cpus=1, num_gpus=int(on_gpu), max_restarts=-1, max_task_retries=LIVES - 1)(_Worker)
        name = model.name if model else None
        pool = ActorPool([remote.remote(name, server) for _ in range(min(workers, len(waiting)))])

        def ask(worker: Any, number: int) -> Any:
            return worker.write.remote(sent, plan.source, plan.output, number, plan.images_of(number))

        yield from pool.map_unordered(ask, waiting)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"a worker died {LIVES} times at one part: {error}".splitlines()[0],
            "where memory is short, fewer --workers; the same command goes on from here",
        ) from None
    finally:
        if began:
            ray.shutdown()


def _begin(address: str, workers: int) -> None:
    """Join a cluster, or start Ray here. Raises UserError where none listens: Ray would try for many minutes."""
    import ray

    here: dict[str, Any] = {"num_cpus": workers or None, "include_dashboard": False} if not address else {}
    if here and len(tempfile.gettempdir()) > LONGEST_FOLDER:
        here["_temp_dir"] = "/tmp/ray"
    host, _, port = address.rpartition(":")
    for last in (False, False, True):
        try:
            if host:
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **here)
            return
        except (OSError, ValueError) as error:  # also Ray's ConnectionError
            problem = f"no Ray cluster answers at {address}: {error}"
            raise UserError(problem, CLUSTER, code=Exit.USAGE) from None
        except Exception as error:  # it has no type for a start that took more than its 30 seconds
            if "timed out during startup" not in str(error):
                raise
            if last:
                raise UserError("Ray does not start here", "the machine is too busy") from None
            ray.shutdown()


class _Worker:
    """What one Ray actor holds."""

    def __init__(self, model: str | None, server: str) -> None:
        self._model, self._server = model, server
        self._detector: Detector | None = None

    def write(self, sent: list[Any], source: str, output: str, number: int, images: Any) -> Part:
        self._detector = self._detector or self._open(sent)
        return write_part(source, output, number, images, self._detector)

    def _open(self, sent: list[Any]) -> Detector:
        if not self._model:
            from retinaserve.eval.client.client import Client

            return Client(self._server)
        import ray

        from retinaserve.eval.runtimes.detector import open_detector

        with tempfile.TemporaryDirectory() as folder:
            for name, content in ray.get(sent[0]).items():
                (Path(folder) / name).write_bytes(content)
            return open_detector(Path(folder) / self._model, threads=0 if self._model.endswith(".plan") else 1)


def _row(uri: str, answer: Detections | ImageError, class_names: Sequence[str]) -> dict[str, Any]:
    if isinstance(answer, ImageError):
        if answer.kind == "overloaded":  # not the image's fault
            raise UserError(answer.message, "fewer --workers; the same command goes on from here")
        return {"uri": uri, "boxes": [], "scores": [], "classes": [], "error": answer.message}
    height, width = answer.size or (None, None)
    return {
        "uri": uri,
        "width": width,
        "height": height,
        "boxes": answer.boxes.tolist(),
        "scores": answer.scores.tolist(),
        "classes": [class_names[index] for index in answer.classes],
        "error": None,
    }


def _put(files: Any, path: str, table: Any, *, first: bool = False) -> None:
    """Write a file whole: an object store shows it when it is complete, elsewhere by renaming.

    `first`: what another run has put there meanwhile stays; a disk has no moment in between.
    """
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    protocols = {files.protocol} if isinstance(files.protocol, str) else set(files.protocol)
    if first:
        files.invalidate_cache()
        if files.exists(path):
            return
    if "file" in protocols and first:
        with staging(Path(path)) as scratch:
            partial = scratch / INPUTS
            partial.write_bytes(buffer.getvalue())
            try:
                os.link(partial, path)
            except FileExistsError:
                pass
            except OSError:  # of a file system without links
                partial.replace(path)
    elif "file" in protocols:
        write_bytes(Path(path), buffer.getvalue())
    elif protocols & STORES:
        files.pipe_file(path, buffer.getvalue())
    else:
        folder, name = path.rsplit("/", 1)
        beside = f"{folder}/_{name}.{os.getpid()}"
        files.pipe_file(beside, buffer.getvalue())
        files.mv(beside, path)


@dataclass(frozen=True, eq=False)
class Recorded:
    """The rows of a Parquet file, or of a folder of them, as a Detector of files.

    An image's row is the one whose uri ends with the file's path, or with as much of it as tells it from others.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    table: Any
    rows: dict[str, list[tuple[str, int]]]  # by file name: path, and number in the table
    of_files = True  # answers paths; see tiled.answers_of

    @classmethod
    def read(cls, address: str) -> Self:
        """Read an address. Raises UserError for what `batch` did not write."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        files, place = open_place(address)
        try:
            with reached(address):
                table = pq.read_table(place, filesystem=files)
            known = json.loads((table.schema.metadata or {})[CLASSES])
        except (KeyError, pa.ArrowInvalid) as error:
            raise UserError(f"{bare(address)}: no predictions of `retinaserve batch`: {error}") from None
        rows = defaultdict[str, list[tuple[str, int]]](list)
        for number, uri in enumerate(table["uri"].to_pylist()):
            path = uri.split("::", 1)[0].split("://", 1)[-1]
            rows[path.rsplit("/", 1)[-1]].append((path, number))
        return cls(tuple(known["classes"]), tuple(known["category_ids"]), table, rows)

    def predict(self, images: Sequence[Any]) -> list[Detections]:
        """Return the boxes of each file. Raises UserError for the first without."""
        return [answered(answer, number) for number, answer in enumerate(self.predict_many(images), 1)]

    def predict_many(self, images: Iterable[Any]) -> Iterator[Detections | ImageError]:
        """Yield what was recorded for each file (Path), in order."""
        number = {name: index for index, name in enumerate(self.class_names)}
        for file in images:
            parts, row = self.rows.get(file.name, []), None
            for depth in range(1, len(file.parts) + 1):
                tail = "/".join(file.parts[-depth:])
                left = [each for each in parts if each[0] == tail or each[0].endswith(f"/{tail}")]
                if len(left) == 1:
                    (row,) = self.table.slice(left[0][1], 1).to_pylist()
                if len(left) <= 1:
                    break
            if row is None:
                yield ImageError(f"{len(parts)} rows of the predictions could be this image, none is it for sure")
            elif row["error"]:
                yield ImageError(row["error"])
            else:
                classes = [number[name] for name in row["classes"]]
                boxes = np.reshape(np.array(row["boxes"], np.float32), (-1, 4))
                size = (row["height"], row["width"])
                yield Detections.from_slots(len(boxes), boxes, row["scores"], classes, size=size)
