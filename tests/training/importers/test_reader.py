import gzip
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from retinaserve.training.errors import UserError
from retinaserve.training.importers.pickles import Inert, plain
from retinaserve.training.importers.reader import read_weights
from retinaserve.training.importers.states import find

STATE = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "a.bias": torch.tensor([1.5, -2.5], dtype=torch.float16),
    "b.weight": torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16),
    "b.count": torch.tensor(7),
    "view": torch.arange(12.0).view(3, 4)[1:, ::2].t(),
}
MARKS = {"these": ("a.weight", "b.count")}


class Wrapped:
    """A class of somebody's own: with attributes, like a config, and never imported again."""

    def __init__(self) -> None:
        self.lr, self.path = 0.1, PurePosixPath("runs/1")


def saved(content: Any, path: Path, **how: Any) -> Path:
    torch.save(content, path, **how)
    return path


def tensors(content: Any) -> dict[str, torch.Tensor]:
    (found,) = find(content, MARKS)
    return found.state


def numpy_pickle(state: dict[str, torch.Tensor], path: Path, protocol: int) -> Path:
    arrays = {name: value.float().numpy() for name, value in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}, protocol=protocol))
    return path


def test_big_endian_arrays_and_fortran_order(tmp_path: Path) -> None:
    content = {
        "a.weight": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
        "b.count": np.array(7, ">i8"),
    }
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content))
    found = tensors(read_weights(tmp_path / "m.pkl"))
    assert torch.equal(found["a.weight"], STATE["a.weight"]) and int(found["b.count"]) == 7


def test_hdf5_links_lead_nowhere(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.ones(3, np.float32)
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file["model_weights/conv1/kernel:0"] = np.arange(3, dtype=">f4")
        file["model_weights"].attrs["backend"] = "tensorflow"
        file["linked"] = h5py.ExternalLink("other.h5", "/secret")
        file["again"] = h5py.SoftLink("/model_weights/conv1/kernel:0")
    content = read_weights(tmp_path / "model.h5")
    assert isinstance(content, dict) and content.keys() == {"model_weights/conv1/kernel:0", "backend"}
    assert content["model_weights/conv1/kernel:0"].tolist() == [0, 1, 2]


REACHED: list[str] = []


def reached(what: str) -> str:
    """What a pickle would run: harmless, and seen."""
    REACHED.append(what)
    return what


class Runs:
    def __init__(self, how: int) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return (
            (reached, ("called",)),
            (exec, ("import tests.training.importers.test_reader as t; t.reached('exec')",)),
            (list, (map(reached, ["mapped"]),)),
            (Later, (), ("state",)),
            (os.path.join, (Runs(0), "x")),
        )[self.how]


class Later:
    def __setstate__(self, state: Any) -> None:
        reached("state")


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("how", range(5))
def test_a_pickle_that_would_run_something_does_not(tmp_path: Path, how: int, protocol: int) -> None:
    data = pickle.dumps({**STATE, "x": Runs(how)}, protocol=protocol)
    REACHED.clear()
    pickle.loads(data)
    assert REACHED, "the test's own pickle does nothing"
    REACHED.clear()
    (tmp_path / "bare.pkl").write_bytes(data)
    for path in (
        tmp_path / "bare.pkl",
        saved({"model": STATE, "x": Runs(how)}, tmp_path / "new.pth"),
        saved({"model": STATE, "x": Runs(how)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False),
    ):
        content = read_weights(path)
        assert isinstance(content, dict)
        found = content["x"]
        assert isinstance(found, Inert) and REACHED == []
    assert plain(found) is found and isinstance(found("anything"), Inert)


def zipped(path: Path, program: bytes, data: bytes = b"\0" * 16) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", data)
    return path


def tensor_program(count: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A pickle of one tensor, of a storage that is called `count` values long."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if value is REACHED else None

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (REACHED, offset, size, stride, False, OrderedDict())

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"a.weight": Tensor()})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("offset", "size", "stride", "good"),
    [
        (0, (2, 2), (2, 1), True),
        (0, (0, 9), (1, 1), True),
        (1, (2, 2), (2, 1), False),
        (0, (1 << 40,), (0,), False),
        (-1, (2,), (1,), False),
        (0, (2,), (-1,), False),
        (0, (2,), (1 << 60,), False),
    ],
)
def test_tensors_stay_inside_the_file(
    tmp_path: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...], good: bool
) -> None:
    path = zipped(tmp_path / "m.pth", tensor_program(1 << 50, offset, size, stride))
    if good:
        content = read_weights(path)
        assert isinstance(content, dict) and content["a.weight"].shape == size
    else:
        with pytest.raises(UserError, match="beyond its storage"):
            read_weights(path)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty file"),
    "text": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not weights"),
    "memo of 2^31": (b"\x80\x02}r\xff\xff\xff\x7f.", "memo"),
    "extension": (b"\x80\x02\x82\x01.", "opcode EXT1"),
    "bytes of 2^60": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.", "not weights"),
    "bytearray of 2^60": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b"x.", "not weights"),
    "deep": (b"(" * 100_000 + b".", "not weights"),
}


@pytest.mark.parametrize("name", BAD)
def test_broken_pickles_are_answered_in_a_line(tmp_path: Path, name: str) -> None:
    data, message = BAD[name]
    (tmp_path / "m.pkl").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "m.pkl")


def test_the_remedy_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{name}", b"")
    with pytest.raises(UserError, match="TorchScript") as error:
        read_weights(tmp_path / "script.pt")
    assert "state_dict()" in error.value.hint
    with zipfile.ZipFile(tmp_path / "weights.zip", "w") as archive:
        archive.writestr("model.pth", b"")
    with pytest.raises(UserError, match="torch has not written"):
        read_weights(tmp_path / "weights.zip")
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").touch()
    with pytest.raises(UserError, match="distributed checkpoint") as error:
        read_weights(tmp_path / "dcp")
    assert "dcp_to_torch" in error.value.hint


FOREIGN = {
    "nothing": (b"", "an empty file", "again"),
    "a page": (
        "<!DOCTYPE html>\n<html>404 не".encode()[:-1],
        "text, not weights: <!DOCTYPE html>",
        "git lfs pull",
    ),
    "ONNX": (b"\x08\x07\x12\x07pytorch", "an ONNX graph", "checkpoint"),
    "a photo": (b"\xff\xd8\xff\xe0" + bytes(600), "not weights that can be read", "torch.save"),
    "gzip": (gzip.compress(b"weights"), "a packed file", "unpack"),
    "half a zip": (b"PK\x03\x04" + bytes(600), "the end of the file is missing", "again"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_lies_there_instead_of_weights_is_told(tmp_path: Path, name: str) -> None:
    content, message, hint = FOREIGN[name]
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_weights(tmp_path / "model.pth")
    assert hint in error.value.hint


def test_a_damaged_file_is_read_or_refused(tmp_path: Path) -> None:
    """Flip, cut and repeat bytes of every kind of file: an answer or a UserError, nothing else."""
    content = {"model": STATE, "config": Wrapped(), "history": np.arange(3.0)}
    files = [
        saved(content, tmp_path / "new.pth"),
        saved(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False),
        numpy_pickle(STATE, tmp_path / "numpy.pkl", 2),
        numpy_pickle(STATE, tmp_path / "text.pkl", 0),
    ]
    save_file({name: value.contiguous() for name, value in STATE.items()}, tmp_path / "m.safetensors")
    rng = np.random.default_rng(0)
    for path in (*files, tmp_path / "m.safetensors"):
        original = np.frombuffer(path.read_bytes(), np.uint8)
        damaged = tmp_path / f"damaged{path.suffix}"
        for _ in range(150):
            data = original.copy()
            places = rng.integers(0, min(len(data), 4000), rng.integers(1, 4))
            data[places] = rng.integers(0, 256, len(places))
            data = data[: rng.integers(1, len(data))] if rng.random() < 0.2 else data
            damaged.write_bytes(data.tobytes())
            try:
                for candidate in find(read_weights(damaged), MARKS):
                    assert all(value.numel() < 1000 for value in candidate.state.values())
            except UserError as error:
                assert len(error.message) < 400
