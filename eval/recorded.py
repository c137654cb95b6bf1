"""What `batch` wrote, as a Detector of files: scored like a server, without asking anybody.

    report = evaluate_detector(Recorded.read("s3://bucket/boxes"), truth, Path("val/images"))

An image's row is the one whose uri ends with the file's path, or with as much of it as tells it from others.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from retinaserve.eval.sources import bare, open_place, reached
from retinaserve.training.detections import Detections, ImageError
from retinaserve.training.errors import UserError

CLASSES = b"retinaserve"  # in the metadata of a part: the detector's class names and categories, as JSON


@dataclass(frozen=True, eq=False)
class Recorded:
    """The rows of a Parquet file, or of a folder of them."""

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
        found = []
        for answer in self.predict_many(images):
            if isinstance(answer, ImageError):
                raise UserError(answer.message)
            found.append(answer)
        return found

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
