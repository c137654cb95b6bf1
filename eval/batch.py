"""Images by the million: any fsspec address in, Parquet out, on Ray's workers, going on where a run was killed.

    plan = Plan.make("s3://bucket/images", "s3://bucket/boxes", part=500)
    for done in run(plan, model=Path("model.onnx"), workers=4):
        print(done)                                 # Part(number, images, failed)

The inputs are listed once, sorted, and written down beside the output; `part` of them after the other become one
Parquet file, put in place whole. A run skips the parts that are there, so no image is written twice and a killed
run costs the parts it was at. An image that can't be answered is a row with its error.

Ray runs actors here, not Ray Data, which adds to what is there on a second run, drops a block for a bad row, and
guesses a schema from each block.
"""

import io
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retinaserve.training.detections import Detections, Detector, ImageError
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.letterbox import SUFFIXES

INPUTS, PARTS = "_inputs.parquet", "part-{:06d}.parquet"  # readers of Parquet skip names that begin with _
READ_AHEAD = 16  # images of a part that are fetched at a time


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


@dataclass(frozen=True)
class Plan:
    """What is to be done: all uris, in order, and how many make a part."""

    output: str
    uris: tuple[str, ...]
    part: int

    @classmethod
    def make(cls, source: str, output: str, *, part: int) -> "Plan":
        """List the source, or read what an earlier run listed. Raises UserError for a place without images."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        files, folder = _place(output)
        listed = f"{folder}/{INPUTS}"
        if files.exists(listed):
            table = pq.read_table(io.BytesIO(files.cat_file(listed)))
            known = json.loads(table.schema.metadata[b"retinaserve"])
            if known["source"] != source:
                raise UserError(
                    f"{output} holds the boxes of {known['source']}, not of {source}",
                    "name another output",
                    code=Exit.USAGE,
                )
            return cls(output, tuple(table["uri"].to_pylist()), known["part"])
        uris = _images(source)
        table = pa.table({"uri": uris}).replace_schema_metadata(
            {"retinaserve": json.dumps({"source": source, "part": part})}
        )
        files.makedirs(folder, exist_ok=True)
        _put(files, listed, table)
        return cls(output, tuple(uris), part)

    def parts(self) -> int:
        """Return how many parts there are."""
        return -(-len(self.uris) // self.part)

    def waiting(self) -> list[int]:
        """Return the parts that are not there yet."""
        files, folder = _place(self.output)
        files.invalidate_cache()
        there = {path.rsplit("/", 1)[-1] for path in files.find(folder)}
        return [number for number in range(self.parts()) if PARTS.format(number) not in there]

    def uris_of(self, number: int) -> tuple[str, ...]:
        """Return the images of a part."""
        return self.uris[number * self.part : (number + 1) * self.part]


def write_part(plan: Plan, number: int, detector: Detector) -> Part:
    """Answer the images of a part and write it."""
    import pyarrow as pa

    uris = plan.uris_of(number)
    answers = detector.predict_many(_contents(uris))
    rows = [_row(uri, answer, detector.class_names) for uri, answer in zip(uris, answers, strict=True)]
    files, folder = _place(plan.output)
    _put(files, f"{folder}/{PARTS.format(number)}", pa.Table.from_pylist(rows, schema=schema()))
    return Part(number, len(rows), sum(row["error"] is not None for row in rows))


LONGEST_FOLDER = 30  # of temporary files: Ray's sockets lie 70 characters below, and Linux takes 107 in all


def run(
    plan: Plan, *, model: Path | None, server: str = "", workers: int = 1, address: str = ""
) -> Iterator[Part]:
    """Yield the parts as they are written, in any order.

    Each worker holds the model, or asks the server. `address` is a Ray cluster's; without one Ray runs here.
    """
    waiting = plan.waiting()
    if not waiting:
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.util import ActorPool

    began = not ray.is_initialized()
    if began:
        here: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if not address else {}
        if here and len(tempfile.gettempdir()) > LONGEST_FOLDER:
            here["_temp_dir"] = "/tmp/ray"
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **here)
    try:
        shared = ray.put(plan)
        remote = ray.remote(num_cpus=1)(_Worker)
        pool = ActorPool([remote.remote(shared, model, server) for _ in range(min(workers, len(waiting)))])
        yield from pool.map_unordered(lambda actor, number: actor.write.remote(number), waiting)
    finally:
        if began:
            ray.shutdown()


class _Worker:
    """What one Ray actor holds."""

    def __init__(self, plan: Plan, model: Path | None, server: str) -> None:
        self._plan = plan
        self._detector: Detector
        if model:
            from retinaserve.eval.runtimes.detector import open_detector

            self._detector = open_detector(model, threads=1)
        else:
            from retinaserve.eval.client.client import Client

            self._detector = Client(server)

    def write(self, number: int) -> Part:
        return write_part(self._plan, number, self._detector)


def _place(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        files, folder = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{address}: {error}", "a folder, or an address that fsspec knows", code=Exit.USAGE
        ) from None
    return files, folder.rstrip("/")


def _images(source: str) -> list[str]:
    files, folder = _place(source)
    found = sorted(path for path in files.find(folder) if Path(path).suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"{source}: no images there", f"suffixes: {' '.join(sorted(SUFFIXES))}")
    return [files.unstrip_protocol(path) for path in found]


def _contents(uris: Sequence[str]) -> Iterator[bytes | ImageError]:
    """Yield the images, some fetched at a time; one that can't be read gives its ImageError."""
    files, _ = _place(uris[0])
    for start in range(0, len(uris), READ_AHEAD):
        paths = [files._strip_protocol(uri) for uri in uris[start : start + READ_AHEAD]]
        found = files.cat(paths, on_error="return")
        for path in paths:
            content = found[path] if isinstance(found, dict) else found
            yield content if isinstance(content, bytes) else ImageError(f"it can't be read: {content}")


def _row(uri: str, answer: Detections | ImageError, class_names: Sequence[str]) -> dict[str, Any]:
    if isinstance(answer, ImageError):
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


def _put(files: Any, path: str, table: Any) -> None:
    """Write a file whole: an object store shows it when it is complete, a disk by renaming."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    if "file" in files.protocol:
        from retinaserve.training.files import write_bytes

        write_bytes(Path(path), buffer.getvalue())
    else:
        files.pipe_file(path, buffer.getvalue())
