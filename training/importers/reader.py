"""Weights as people save them, read as data: no class of the file is imported and nothing in it is called.

    content = read_weights(Path("model.pth"))     # nested dicts of tensors and plain values, as the file has them

torch's zip and legacy files, whole modules, numpy pickles, safetensors, HDF5 and folders of shards. torch's own
`weights_only` refuses a file with one class in it that it does not know, tensors and all; fickling judges pickles,
but reads none.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from retinaserve.training.errors import UserError
from retinaserve.training.importers.arrays import read_hdf5, read_safetensors
from retinaserve.training.importers.pickles import UNPACK, read_archive, read_stream

PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf")  # gzip, bzip2, xz, 7-Zip
STATE_DICT = "save the model's own state_dict() with torch.save"
FOREIGN = (  # zip files of others: the end of a name in them, what they are, and the remedy
    ("constants.pkl", "a TorchScript archive", STATE_DICT),
    ("models/model.json", "a program of torch.export", STATE_DICT),
    ("model.weights.h5", "a .keras file", "save the model as HDF5: model.save('model.h5')"),
)
SHARDS = (".safetensors.index.json", ".bin.index.json")
ENDINGS = (".safetensors", ".bin", ".pth", ".pt", ".pkl", ".ckpt", ".h5")
WHOLE = ("model.safetensors", "pytorch_model.bin", "model.pth", "model.pt")


def read_weights(path: Path) -> object:
    """Return what a file or folder of weights holds. Raises UserError, with a remedy that works, for others."""
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file", "weights that you have downloaded are expected")
    try:
        if path.name.endswith(SHARDS):
            return _folder(path.parent)
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(0)
            if head[:4] == b"PK\x03\x04":
                return _zip(file)
            if head == b"\x89HDF\r\n\x1a\n":
                return read_hdf5(path)
            if path.suffix == ".safetensors" or (head[-1:] == b"\0" and file.read(9)[8:] == b"{"):
                return read_safetensors(path)
            file.seek(0)
            return read_stream(file, path.stat().st_size)
    except UserError as error:
        raise UserError(f"{path}: {error.message}", error.hint, code=error.code) from None
    except PermissionError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except Exception as error:  # a broken file can break a pickle, a tensor, a zip or HDF5 in dozens of ways
        problem, remedy = _reason(path, error)
        raise UserError(f"{path}: {problem}", remedy) from None


def _reason(path: Path, error: Exception) -> tuple[str, str]:
    """Return what is wrong with a file that could not be read, by how it begins, and the remedy."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "an empty file", "download or copy it again"
    if head.startswith(PACKED) or head[257:262] == b"ustar":
        return "a packed file", UNPACK
    if isinstance(error, zipfile.BadZipFile):
        return "the end of the file is missing, or damaged", "download or copy it again"
    if head[0] == 8 or path.suffix == ".onnx":  # the field ir_version
        return "an ONNX graph, where weights are folded", "import the checkpoint that it was made from"
    if not any(byte < 32 and byte not in b"\t\r\n" for byte in head):
        text = (head.decode("utf-8", "replace").splitlines() or [""])[0][:30]
        if (path.parent / text).is_file():
            return f"text, which names {text}", f"name that file: {path.parent / text}"
        remedy = "a download may have got a page, or a pointer of Git LFS (git lfs pull), in place of the file"
        return f"text, not weights: {text}", remedy
    return (
        f"not weights that can be read: {_short(error)}",
        f"copy or download it again; if it is whole, {STATE_DICT}",
    )


def _folder(folder: Path) -> object:
    """Read the one file of weights, or the shards, of a Hugging Face folder."""
    names = sorted(each.name for each in folder.iterdir())
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        raise UserError(
            f"{folder}: a distributed checkpoint of torch",
            "make it one file: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} model.pth",
        )
    if "saved_model.pb" in names:
        raise UserError(f"{folder}: a SavedModel of TensorFlow", "save the model with model.save('model.h5')")
    for name in names:
        if name.endswith(SHARDS):
            shards = json.loads((folder / name).read_text())["weight_map"].values()
            state: dict[Any, Any] = {}
            for shard in sorted(set(shards)):
                part = read_weights(folder / Path(shard).name)
                if not isinstance(part, Mapping):
                    raise UserError(f"{folder / shard}: not a shard of weights")
                state |= part
            return state
    for name in WHOLE:
        if name in names:
            return read_weights(folder / name)
    if {"data.pkl", "data"} <= set(names):  # a browser has unpacked it
        files = [str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()]
        return read_archive(files, lambda name: (folder / name).read_bytes())
    found = [name for name in names if name.endswith(ENDINGS)]
    if len(found) == 1:
        return read_weights(folder / found[0])
    inner = [name for name in names if any(name.endswith(ENDINGS) for name in _files(folder / name))]
    problem = f"holds {', '.join(found or inner)}" if found or inner else "holds no weights"
    pointed = folder / "last_checkpoint"  # Detectron2's and mmengine's: a name or a path
    last = Path(pointed.read_text().strip()).name if pointed.is_file() else ""
    name = last if last in found else (*found, *inner, "FILE")[0]
    raise UserError(
        f"{folder}: a folder that {problem}", f"name one, as in: retinaserve import {folder / name} OUT.pth"
    )


def _files(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()] if folder.is_dir() else []


def _zip(file: IO[bytes]) -> object:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        for mark, problem, remedy in FOREIGN:
            if any(name.endswith(mark) for name in names):
                raise UserError(problem, remedy)
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise UserError("a compressed zip file, which torch does not write", UNPACK)
        if all(name.endswith(".npy") for name in names):
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        return read_archive(names, archive.read)


def _short(error: Exception) -> str:
    text = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return text or type(error).__name__
