"""What `batch` reads: folders, tars and Parquet files, against the bytes that were put there."""

import io
import tarfile
from base64 import b64encode
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from retinaserve.eval.sources import bare, list_images, read_images
from retinaserve.training.detections import ImageError
from retinaserve.training.errors import UserError

pa = pytest.importorskip("pyarrow", reason="the extra [batch] is not installed")
fsspec = pytest.importorskip("fsspec")
pq = pytest.importorskip("pyarrow.parquet")

CONTENT = {
    f"{name}.jpg": f"{name} ".encode() * 300 for name in ("a", "b 1", "b [1]", "c%20", "d#", "e?", "f*", "ü")
}


def read(source: str) -> list[tuple[str, bytes | str]]:
    """Return uri and content, or error, of each image."""
    files, rows = list_images(source)
    found = [each.message if isinstance(each, ImageError) else each for each in read_images(files, rows)]
    return list(zip(rows["uri"].to_pylist(), found, strict=True))


def tar_of(content: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_names_that_look_like_patterns_are_names(tmp_path: Path) -> None:
    for name, content in {**CONTENT, "_hidden.jpg": b"", "notes.txt": b"", "part-0.parquet": b""}.items():
        (tmp_path / name).write_bytes(content)
    found = read(str(tmp_path))
    assert found == [(f"file://{tmp_path}/{name}", CONTENT[name]) for name in sorted(CONTENT)]
    assert read(f"file://{tmp_path}/b*1*.jpg") == [each for each in found if "/b" in each[0]]
    (one,) = read(str(tmp_path / "a.jpg"))
    assert one[1] == CONTENT["a.jpg"]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_shards(tmp_path: Path, kind: int) -> None:
    long = f"{'folder/' * 30}x.y.png"
    first = {"0.jpg": b"0" * 700, "0.json": b"{}", long: b"1" * 3, "empty.jpg": b""}
    (tmp_path / "s-0.tar").write_bytes(tar_of(first, kind))
    (tmp_path / "s-1.tar").write_bytes(tar_of(CONTENT, kind))
    shards = [f"file://{tmp_path}/s-{number}.tar" for number in (0, 1)]
    expected = [(f"tar://{name}::{shards[0]}", first[name]) for name in ("0.jpg", long, "empty.jpg")]
    assert read(str(tmp_path)) == expected + [(f"tar://{n}::{shards[1]}", data) for n, data in CONTENT.items()]
    with fsspec.open(expected[1][0]) as file:
        assert file.read() == expected[1][1], "the uri is an address that fsspec opens"


def test_a_shard_that_ends_early_costs_its_rest(tmp_path: Path) -> None:
    whole = tar_of(dict(list(CONTENT.items())[:3]), tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(whole[: 512 + 1024 + 512 + 700])
    (tmp_path / "b.tar").write_bytes(tar_of(CONTENT))
    found = read(str(tmp_path))
    assert found[0][1] == CONTENT["a.jpg"]
    assert [type(content) for _, content in found[1 : -len(CONTENT)]] == [str, str], (
        "the cut one, and the tar itself"
    )
    assert "further" in str(found[2][1]) and [content for _, content in found[-len(CONTENT) :]] == list(
        CONTENT.values()
    )


def test_a_shard_with_a_broken_header_says_so(tmp_path: Path) -> None:
    """tarfile takes it for the end: the images behind it would be missing without a word."""
    content = bytearray(tar_of({f"{n}.jpg": bytes([n]) * 700 for n in range(4)}))
    content[2 * 1536 + 10] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(content)
    found = read(str(tmp_path))
    assert [each for _, each in found[:2]] == [bytes([n]) * 700 for n in range(2)]
    assert found[2:] == [(f"file://{tmp_path}/a.tar", "the tar can't be read further: bad header")]


def test_parquet_that_changed_after_it_was_listed(tmp_path: Path) -> None:
    path, values = tmp_path / "a.parquet", [f"{n}".encode() * 900 for n in range(40)]
    pq.write_table(pa.table({"jpg": values}), path, row_group_size=10, compression="none", use_dictionary=False)
    files, rows = list_images(str(path))
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(values[32]) - 4 : damaged.index(values[32])] = b"\xff" * 4  # its length
    path.write_bytes(damaged)
    found = list(read_images(files, rows))
    assert len(found) == 40 and found[:16] == values[:16] and isinstance(found[32], ImageError)
    pq.write_table(pa.table({"jpg": values[:25]}), path)
    found = list(read_images(files, rows))
    assert found[:25] == values[:25] and "fewer rows" in found[25].message and len(found) == 40  # type: ignore[union-attr]
    path.unlink()
    assert all(isinstance(each, ImageError) for each in read_images(files, rows))


def test_passwords_are_not_written_down() -> None:
    assert bare("sftp://me:secret@host/a/b@c.jpg") == "sftp://host/a/b@c.jpg"
    for address in ("s3://bucket/a:b@c", "abfs://container@account.dfs.core.windows.net/a", "/a:b@c"):
        assert bare(address) == address


def test_a_password_for_http_is_not_in_the_paths(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")

    class Guarded(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Authorization"] == f"Basic {b64encode(b'me:s@cret').decode()}":
                super().do_GET()
            else:
                self.send_error(401)

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "a.jpg").write_bytes(b"image")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Guarded, directory=str(tmp_path))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            place = f"127.0.0.1:{server.server_port}"
            files, rows = list_images(f"http://me:s%40cret@{place}/")
            assert rows["uri"].to_pylist() == rows["path"].to_pylist() == [f"http://{place}/a.jpg"]
            assert list(read_images(files, rows)) == [b"image"]
            with pytest.raises(UserError, match=r"401|no images"):
                list_images(f"http://{place}/")
        finally:
            server.shutdown()


def test_parquet_of_bytes(tmp_path: Path) -> None:
    names, data = list(CONTENT), list(CONTENT.values())
    table = pa.table({"key": names, "jpg": data, "n": range(8)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    struct = pa.array(
        [{"bytes": each, "path": None} for each in data[:2]] + [None]
    )  # as Hugging Face's `datasets`
    pq.write_table(pa.table({"image": struct}), tmp_path / "b.parquet")
    found = read(str(tmp_path))
    address = f"file://{tmp_path}/b.parquet"
    assert found[:8] == list(CONTENT.items())
    assert found[8:] == [
        (f"{address}#0", data[0]),
        (f"{address}#1", data[1]),
        (f"{address}#2", "there are no bytes"),
    ]
    files, rows = list_images(str(tmp_path))
    for start, stop in ((0, 2), (2, 5), (4, 7), (3, 6), (7, 10)):  # inside, across and along the groups of three
        expected = [content for _, content in found[start:stop]]
        read_again: list[Any] = list(read_images(files, rows.slice(start, stop - start)))
        assert [each.message if isinstance(each, ImageError) else each for each in read_again] == expected


def test_what_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    for name, value in {
        "ENDPOINT_URL": "http://127.0.0.1:1",
        "ACCESS_KEY_ID": "key",
        "SECRET_ACCESS_KEY": "secret",
        "MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(UserError, match="no images there"):
        list_images(str(tmp_path))
    (tmp_path / "a.tar").write_bytes(tar_of({"a.json": b"{}"}))
    with pytest.raises(UserError, match="no images there"):
        list_images(str(tmp_path))
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match="connect to the endpoint"):
        list_images("s3://bucket/a")
    pq.write_table(pa.table({"x": [b""], "y": [b""]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="columns of bytes: x, y"):
        list_images(str(tmp_path))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="no column of bytes"):
        list_images(str(tmp_path))
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    assert "can't be read" in str(read(str(tmp_path))[0][1])
    with pytest.raises(UserError, match="none"):
        list_images("none://x")


def test_an_image_that_is_gone_and_a_store_that_fails(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"b")
    files, rows = list_images(str(tmp_path))
    (tmp_path / "a.jpg").unlink()
    gone, there = read_images(files, rows)
    assert isinstance(gone, ImageError) and there == b"b"
    s3fs = pytest.importorskip("s3fs")
    nowhere = s3fs.S3FileSystem(key="key", secret="secret", endpoint_url="http://127.0.0.1:1")
    nowhere.retries = 1
    with pytest.raises(UserError, match=r"b\.jpg: it can't be read"):
        list(read_images(nowhere, rows.slice(1)))
