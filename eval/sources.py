"""Images at an fsspec address: files, tars of them (webdataset's shards), or Parquet files with a column of bytes.

    files, found = list_images("s3://bucket/shards")        # a table, a row an image
    for content in read_images(files, found):               # bytes, or an ImageError

A place is one kind: its image files if there are any, otherwise its tars, otherwise its Parquet files. Of a tar
only the images' places are kept, and read again by their ranges. A tar or Parquet file that can't be read is a row
with its error, as is an image that is gone; a store that does not answer, or takes no credentials, raises.
"""

import re
import tarfile
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from retinaserve.training.detections import ImageError
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.images.letterbox import SUFFIXES

TOGETHER = 16  # images that are fetched at a time, while as many are worked on
LISTED_AT_A_TIME = 8  # tars and Parquet files
HEADERS = 1 << 18  # bytes of a tar that are read at a time, to find where its images are
CLIENTS = frozenset({"aiohttp", "azure", "botocore", "gcsfs", "google"})  # whose errors are no OSError
NAMES = ("uri", "file_name", "path", "name", "key", "__key__")  # columns that name an image, best first


def listing_schema() -> Any:
    """Return the schema of what is listed.

    at, length: bytes of a member of the tar `path`; at alone: a row of the Parquet file `path`.
    """
    import pyarrow as pa

    text = pa.string()
    return pa.schema([("uri", text), ("path", text), ("at", pa.int64()), ("length", pa.int64()), ("error", text)])


def open_place(address: str) -> tuple[Any, str]:
    """Return the file system of an address and the path in it. Raises UserError for what fsspec does not know."""
    from fsspec.core import url_to_fs

    # s3fs would ask for the size of each image before it, to fetch a large one in pieces.
    options: dict[str, Any] = {name: {"max_concurrency": 1} for name in ("s3", "s3a") if f"{name}://" in address}
    try:
        known = re.search(r"(https?)://([^/@:]*):([^/@]*)@", address)
        if known:  # not for the paths, which are written down
            word = b64encode(unquote(f"{known[2]}:{known[3]}").encode()).decode()
            options[known[1]] = {"client_kwargs": {"headers": {"Authorization": f"Basic {word}"}}}
            address = address.replace(f"{known[2]}:{known[3]}@", "", 1)
        files, path = url_to_fs(address, **options)
    except (ImportError, ValueError, OSError) as error:
        raise UserError(
            f"{bare(address)}: {error}", "a folder, a file, or an address that fsspec knows", code=Exit.USAGE
        ) from None
    return files, path.rstrip("/")


def bare(address: str) -> str:
    """Return an address without the password in it."""
    return re.sub(r"://[^/@:]*:[^/@]*@", "://", address)


@contextmanager
def reached(address: str) -> Iterator[None]:
    """Raise UserError for what a disk or store refuses, or where it does not answer."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in CLIENTS:
            raise UserError(f"{bare(address)}: {error}", code=Exit.BAD_DATA) from None
        raise


def list_images(source: str) -> tuple[Any, Any]:
    """Return the file system of an address and its images (pyarrow.Table), sorted by their paths.

    Raises UserError for a place without images.
    """
    import pyarrow as pa

    files, place = open_place(source)
    with reached(source):
        found = sorted(files.glob(place) if "*" in place else files.find(place))
    kinds = {path: PurePosixPath(path) for path in found if not path.rsplit("/", 1)[-1].startswith(("_", "."))}
    images = [path for path, each in kinds.items() if each.suffix.lower() in SUFFIXES]
    chain = f"::{source.split('::', 1)[1]}" if "::" in source else ""

    def uri(path: str) -> str:
        return bare(str(files.unstrip_protocol(path)) + chain)

    if images:
        columns = {"uri": [uri(path) for path in images], "path": images}
        empty = {name: [None] * len(images) for name in ("at", "length", "error")}
        return files, pa.table({**columns, **empty}, schema=listing_schema())
    for suffix, look in ((".tar", _members), (".parquet", _rows)):
        holders = [path for path, each in kinds.items() if each.suffix.lower() == suffix]
        if holders:
            with reached(source), ThreadPoolExecutor(LISTED_AT_A_TIME) as threads:
                table = pa.concat_tables(
                    threads.map(lambda path, look=look: look(files, path, uri(path)), holders)
                )
            if len(table):
                return files, table
            break
    raise UserError(
        f"{bare(source)}: no images there",
        f"images ({' '.join(sorted(SUFFIXES))}), tars of images (.tar), or .parquet with a column of bytes",
    )


def read_images(files: Any, rows: Any) -> Iterator[bytes | ImageError]:
    """Yield the images of listed rows (pyarrow.Table), in order; the next are fetched meanwhile.

    Raises UserError when the store does not answer.
    """
    chunks = _chunks(files, rows.to_pylist())
    with reached(rows["uri"][0].as_py() if len(rows) else ""), ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(next, chunks, None)
        while (found := waiting.result()) is not None:
            waiting = thread.submit(next, chunks, None)
            yield from found


def _members(files: Any, path: str, address: str) -> Any:
    """List a tar; `tar://NAME::ADDRESS` is fsspec's own address of a member."""
    rows = []
    try:
        with files.open(path, "rb", block_size=HEADERS) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile() and PurePosixPath(member.name).suffix.lower() in SUFFIXES:
                    uri = f"tar://{member.name}::{address}"
                    rows.append({"uri": uri, "path": path, "at": member.offset_data, "length": member.size})
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a broken header for the end
                raise tarfile.ReadError("bad header")
    except (tarfile.TarError, OSError) as error:
        problem = str(error) if isinstance(error, tarfile.TarError) else _of_file(files, address, error)
        rows.append({"uri": address, "error": f"the tar can't be read further: {problem}"})
    return _table(rows)


def _rows(files: Any, path: str, address: str) -> Any:
    """List a Parquet file. Raises UserError where its columns do not say which the images are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
            _, name = _columns(parquet.schema_arrow, address)
            count = parquet.metadata.num_rows
            names = parquet.read([name]).flatten().column(0).to_pylist() if name else [None] * count
    except (OSError, pa.ArrowInvalid) as error:
        problem = _of_file(files, address, error)
        return _table([{"uri": address, "error": f"the Parquet file can't be read: {problem}"}])
    return _table([{"uri": name or f"{address}#{row}", "path": path, "at": row} for row, name in enumerate(names)])


def _table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema=listing_schema())


def _columns(schema: Any, address: str) -> tuple[str, str | None]:
    """Return the column of bytes, and that of names; Hugging Face's images are a struct of both."""
    import pyarrow.types as kinds

    def of_bytes(kind: Any) -> bool:
        return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

    def of_text(kind: Any) -> bool:
        return bool(kinds.is_string(kind) or kinds.is_large_string(kind))

    found, names = [], [name for name in NAMES if name in schema.names and of_text(schema.field(name).type)]
    for field in schema:
        if of_bytes(field.type):
            found.append(field.name)
        elif kinds.is_struct(field.type):
            inner = {each.name: each.type for each in field.type}
            if "bytes" in inner and of_bytes(inner["bytes"]):
                found.append(f"{field.name}.bytes")
                names += [f"{field.name}.path"] if "path" in inner and of_text(inner["path"]) else []
    if len(found) != 1:
        which = f"columns of bytes: {', '.join(found)}" if found else "no column of bytes"
        raise UserError(f"{address}: {which}", "one is expected, with encoded images")
    return found[0], names[0] if names else None


def _chunks(files: Any, rows: list[dict[str, Any]]) -> Iterator[list[bytes | ImageError]]:
    def kind(row: dict[str, Any]) -> tuple[str | None, bool]:
        """Return what is read at once: a Parquet file, or ranges of anything else."""
        if row["error"] is not None:
            return None, False
        parquet = row["at"] is not None and row["length"] is None
        return (row["path"] if parquet else ""), parquet

    for (path, parquet), group in groupby(rows, kind):
        some = list(group)
        if path is None:
            yield [ImageError(row["error"]) for row in some]
        elif parquet:
            yield from _of_parquet(files, path, some[0]["at"], some[-1]["at"] + 1)
        else:
            for start in range(0, len(some), TOGETHER):
                yield _ranges(files, some[start : start + TOGETHER])


def _ranges(files: Any, rows: list[dict[str, Any]]) -> list[bytes | ImageError]:
    # Not `cat`, which takes the brackets in a name for a pattern.
    found = files.cat_ranges(
        [row["path"] for row in rows],
        [row["at"] for row in rows],
        [None if row["at"] is None else row["at"] + row["length"] for row in rows],
        on_error="return",
    )
    images: list[bytes | ImageError] = []
    for row, content in zip(rows, found, strict=True):
        if isinstance(content, Exception):
            images.append(ImageError(f"it can't be read: {_of_file(files, row['uri'], content)}"))
        elif row["length"] is not None and len(content) < row["length"]:
            images.append(ImageError(f"the tar has {len(content)} of its {row['length']} bytes"))
        else:
            images.append(content)
    return images


def _of_file(files: Any, uri: str, error: Exception) -> str:
    """Return what is wrong with one file. Raises UserError where the next would fare no better.

    A disk's errors are of one file; a store's, such as credentials that are too old, are of all to come.
    """
    import pyarrow as pa

    damaged = isinstance(error, pa.ArrowInvalid) or (type(error) is OSError and error.errno is None)  # pyarrow's
    if not damaged and not isinstance(error, FileNotFoundError) and "file" not in files.protocol:
        raise UserError(f"{uri}: it can't be read: {error}", "the same command goes on from here")
    return str(error)


def _of_parquet(files: Any, path: str, start: int, stop: int) -> Iterator[list[bytes | ImageError]]:
    """Yield the images of rows start to stop, a few at a time; what is not there is an error each."""
    import pyarrow as pa

    left, problem = stop - start, "the file has fewer rows than were listed"
    try:
        for images in _batches(files, path, start, stop):
            left -= len(images)
            yield images
    except (OSError, pa.ArrowInvalid) as error:
        problem = _of_file(files, path, error)
    yield [ImageError(f"it can't be read: {problem}")] * left


def _batches(files: Any, path: str, start: int, stop: int) -> Iterator[list[bytes | ImageError]]:
    import pyarrow.parquet as pq

    with files.open(path, "rb") as file, pq.ParquetFile(file, buffer_size=1 << 20) as parquet:
        column, _ = _columns(parquet.schema_arrow, path)
        groups, before, skipped = [], 0, 0
        for number in range(parquet.num_row_groups):
            after = before + parquet.metadata.row_group(number).num_rows
            if after <= start:
                skipped = after
            elif before < stop:
                groups.append(number)
            before = after
        place = skipped
        for batch in parquet.iter_batches(TOGETHER, groups, [column]):
            values = batch.column(0).flatten()[0] if "." in column else batch.column(0)
            wanted = values[max(0, start - place) : max(0, stop - place)]
            place += len(batch)
            if len(wanted):
                yield [
                    ImageError("there are no bytes") if value is None else value for value in wanted.to_pylist()
                ]
