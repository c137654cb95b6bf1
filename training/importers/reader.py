"""Weights as people save them, read as data: no class of the file is imported and nothing in it is called.

    content = read_weights(Path("model.pth"))     # nested dicts of tensors and plain values, as the file has them

torch's zip and legacy files, whole modules, numpy pickles, safetensors, HDF5 and folders of shards. A class that
is neither a tensor's nor an array's becomes an `Inert` that keeps what its object held. torch's own `weights_only`
refuses a file with one such class in it, tensors and all; fickling judges pickles, but reads none.
"""

import io
import json
import pickle
import pickletools
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from retinaserve.training.errors import UserError
from retinaserve.training.importers.arrays import read_hdf5, read_safetensors

STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
NUMBERS = re.compile(r"[<>=|]?([?bB]|[iufc]\d+)")
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf")  # gzip, bzip2, xz, 7-Zip
SAVE_AGAIN = "save its state_dict() with torch.save"
SHARDS = (".safetensors.index.json", ".bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin", "model.pth", "model.pt")


class Inert:
    """What an object of some class held: `args` it was made with, `state`, and the items put into it."""

    kind = ""  # module.name of the class

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        """Keep the arguments; there is no class to give them to."""
        self = object.__new__(cls)
        self.args, self.state, self.items, self.listed = args, None, {}, []
        return self

    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]
    listed: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        """Return another inert object: a pickle may call what it has made."""
        return Inert(self, *args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[_hashable(key)] = value

    def append(self, value: Any) -> None:
        """Keep an item, as of a list or a set."""
        self.listed.append(value)

    add = append

    def extend(self, values: Iterable[Any]) -> None:
        """Keep items."""
        self.listed.extend(values)

    def __hash__(self) -> int:
        return id(self)

    def attributes(self) -> dict[str, Any]:
        """Return the object's attributes, of a state that is a dict or one with slots."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {str(key): value for part in parts if isinstance(part, dict) for key, value in part.items()}


class _DType(Inert):
    """numpy.dtype."""

    def numpy(self) -> np.dtype[Any]:
        code = str(self.args[0])
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "="
        if not NUMBERS.fullmatch(code) or order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"an array of {code!r}")
        return np.dtype(("=" if order == "|" else order) + code.lstrip("<>=|"))


class _Array(Inert):
    """numpy.ndarray, as its `_reconstruct` and state."""

    def numpy(self) -> Any:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise pickle.UnpicklingError("an array without data")
        _, shape, dtype, fortran, data = self.state
        return None if isinstance(data, list) else _array(data, dtype, shape, "F" if fortran else "C")


class _Maker:
    """A function of this module in the place of one that a pickle names."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


def read_weights(path: Path) -> object:
    """Return what a file or folder of weights holds. Raises UserError, with a remedy that works, for others."""
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file", "weights that you have downloaded are expected")
    try:
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(0)
            if head[:4] == b"PK\x03\x04":
                return _zip(file)
            if path.suffix == ".onnx":
                raise UserError(
                    "an ONNX graph, where weights are folded", "import the checkpoint that it was made from"
                )
            if head == b"\x89HDF\r\n\x1a\n":
                return read_hdf5(path)
            if path.suffix == ".safetensors" or (head[-1:] == b"\0" and file.read(9)[8:] == b"{"):
                return read_safetensors(path)
            file.seek(0)
            return _stream(file, path.stat().st_size)
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
        return "a packed file", "unpack it, and name the file of weights in it"
    if isinstance(error, zipfile.BadZipFile):
        return "the end of the file is missing, or damaged", "download or copy it again"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        remedy = "a download may have got a page, or a pointer of Git LFS (git lfs pull), in place of the file"
        return f"text, not weights: {head[:30].decode().splitlines()[0]}", remedy
    return f"not weights that can be read: {_short(error)}", SAVE_AGAIN


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
    found = [
        name for name in names if name.endswith((".safetensors", ".bin", ".pth", ".pt", ".pkl", ".ckpt", ".h5"))
    ]
    if len(found) == 1:
        return read_weights(folder / found[0])
    problem = f"holds {', '.join(found)}" if found else "holds no weights"
    raise UserError(f"{folder}: a folder that {problem}", "name one file, as in: retinaserve import FILE OUT.pth")


def _zip(file: IO[bytes]) -> object:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
        if any(name.endswith("constants.pkl") for name in names):
            raise UserError("a TorchScript archive", "save the model's own state_dict() with torch.save")
        if any(name.endswith("model.weights.h5") for name in names):
            raise UserError("a .keras file", "save the model as HDF5: model.save('model.h5')")
        if len(pickles) != 1:
            raise UserError(
                "a zip file that torch has not written", "unpack it, and name the file of weights in it"
            )
        prefix = pickles[0].removesuffix("data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise UserError(
                "a compressed zip file, which torch does not write", "unpack it, and zip it with: zip -0"
            )
        big = f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") == b"big"
        known: dict[str, torch.UntypedStorage] = {}

        def storage(reference: Any) -> tuple[torch.UntypedStorage, torch.dtype]:
            dtype, key = _reference(reference)
            if key not in known:
                known[key] = _bytes(
                    archive.read(f"{prefix}data/{key}"), dtype, swap=big != (sys.byteorder == "big")
                )
            return known[key], dtype

        return _unpickle(io.BytesIO(archive.read(pickles[0])), storage)


def _stream(file: IO[bytes], left: int) -> Any:
    """Read a pickle, or the row of pickles and storages that torch wrote before version 1.6."""
    first = _unpickle(file)
    if first != LEGACY_MAGIC:
        return first
    _unpickle(file), _unpickle(file)  # the protocol, and facts of the machine
    sizes: dict[str, tuple[torch.UntypedStorage, torch.dtype]] = {}

    def storage(reference: Any) -> tuple[torch.UntypedStorage, torch.dtype]:
        dtype, key = _reference(reference)
        count = int(reference[4])
        if not 0 <= count * dtype.itemsize <= left:
            raise pickle.UnpicklingError("a storage larger than the file")
        if len(reference) > 5 and reference[5] is not None:
            raise pickle.UnpicklingError("a view of a storage")
        return sizes.setdefault(key, (_empty(count * dtype.itemsize), dtype))

    content = _unpickle(file, storage)
    for key in _unpickle(file):
        target, dtype = sizes[key]
        (count,) = struct.unpack("<q", file.read(8))
        if count * dtype.itemsize != target.nbytes():
            raise pickle.UnpicklingError("a storage of another size")
        read = _bytes(file.read(target.nbytes()), dtype, swap=sys.byteorder == "big")
        if read.nbytes() != target.nbytes():
            raise pickle.UnpicklingError("the file ends early")
        target.copy_(read)
    return content


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], storage: Callable[[Any], Any] | None) -> None:
        super().__init__(file, encoding="latin1")  # numpy arrays that Python 2 pickled
        self.storage = storage

    def persistent_load(self, reference: Any) -> Any:
        if self.storage is None:
            raise pickle.UnpicklingError("a storage that is not in the file")
        if isinstance(reference, tuple) and reference and reference[0] == "module":
            return reference[1]  # a class of before torch 1.6, with its source
        return self.storage(reference)

    def find_class(self, module: str, name: str) -> Any:
        known = KNOWN.get((module, name))
        if known is not None:
            return known
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        base = {("numpy", "dtype"): _DType, ("numpy", "ndarray"): _Array}.get((module, name), Inert)
        return type(re.sub(r"\W", "_", name), (base,), {"kind": f"{module}.{name}"})


def _unpickle(file: IO[bytes], storage: Callable[[Any], Any] | None = None) -> Any:
    # A memo's index is a size to be allocated, so it is held against the pickle's own length beforehand.
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= (argument or 0) <= count:
            raise pickle.UnpicklingError("a memo out of bounds")
        if opcode.name.startswith(("EXT", "NEXT_BUFFER", "READONLY_BUFFER")):
            raise pickle.UnpicklingError(f"an opcode {opcode.name}")
    file.seek(start)
    # Nothing is read ahead, so that the next pickle of the file begins where this one ends.
    return _Unpickler(file, storage).load()


def _reference(reference: Any) -> tuple[torch.dtype, str]:
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
        raise pickle.UnpicklingError("an unknown reference")
    dtype = reference[1]
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a storage of a type that is not read")
    return dtype, str(reference[2])


def _bytes(data: bytes, dtype: torch.dtype, *, swap: bool) -> torch.UntypedStorage:
    if not data:
        return _empty(0)
    if swap:
        data = np.frombuffer(data, np.uint8).reshape(-1, dtype.itemsize)[:, ::-1].tobytes()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage()


def _empty(size: int) -> torch.UntypedStorage:
    return torch.empty(size, dtype=torch.uint8).untyped_storage()


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    untyped, dtype = storage
    count = untyped.nbytes() // dtype.itemsize
    shape, steps = tuple(map(int, size)), tuple(map(int, stride))
    last = (
        offset + sum((side - 1) * step for side, step in zip(shape, steps, strict=True)) if 0 not in shape else 0
    )
    elements = int(np.prod([float(side) for side in shape]))
    if min((offset, *shape, *steps)) < 0 or last >= max(count, 1) or elements > count:
        raise pickle.UnpicklingError("a tensor beyond its storage")
    return torch.empty(0, dtype=dtype).set_(untyped, offset, shape, steps)


def _array(data: Any, dtype: Any, shape: Any, order: str) -> Any:
    if isinstance(dtype, _DType) and not NUMBERS.fullmatch(str(dtype.args[0])):
        return None  # text
    if isinstance(data, str):
        data = data.encode("latin1")
    array = np.frombuffer(data, dtype.numpy())
    return array.reshape(tuple(map(int, shape)), order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, _DType) or not NUMBERS.fullmatch(str(dtype.args[0])):
        return None
    return _array(data, dtype, (), "C").item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """codecs.encode, which protocol 2 writes bytes with."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes in another encoding")
    return text.encode("latin1")


def _nested(data: bytes) -> Any:
    content = _stream(io.BytesIO(data), len(data))
    if not (isinstance(content, tuple) and isinstance(content[0], torch.UntypedStorage)):
        raise pickle.UnpicklingError("a storage is expected")
    return content


NUMPY = ("numpy.core", "numpy._core")
KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("_codecs", "encode"): _Maker(_encode),
    ("torch._utils", "_rebuild_tensor"): _Maker(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Maker(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Maker(
        lambda storage, offset, size, stride, grad, hooks, dtype, *rest: _tensor(
            (storage[0], dtype), offset, size, stride
        )
    ),
    ("torch._utils", "_rebuild_parameter"): _Maker(lambda data, *rest: data),
    ("torch._utils", "_rebuild_parameter_with_state"): _Maker(lambda data, *rest: data),
    ("torch._tensor", "_rebuild_from_type_v2"): _Maker(lambda function, kind, args, state: function(*args)),
    ("torch.storage", "_load_from_bytes"): _Maker(_nested),
    **{(f"{name}.multiarray", "_reconstruct"): _Maker(lambda kind, *args: _Array(*args)) for name in NUMPY},
    **{(f"{name}.multiarray", "scalar"): _Maker(_scalar) for name in NUMPY},
    **{(f"{name}.numeric", "_frombuffer"): _Maker(_array) for name in NUMPY},
}


def plain(value: Any) -> Any:
    """Return an array of numbers as a tensor, and everything else as it is."""
    if isinstance(value, _Array):
        try:
            value = value.numpy()
        except (AttributeError, TypeError, ValueError, pickle.UnpicklingError):
            return value  # of text or objects, or damaged
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    return value


def mapping_of(value: Any) -> Mapping[Any, Any]:
    """Return what an object or a mapping held by names; nothing of anything else."""
    if isinstance(value, Inert):
        return mapping_of(value.items or value.attributes().get("_cfg_dict") or value.attributes())
    return value if isinstance(value, Mapping) else {}


def _hashable(key: Any) -> Any:
    try:
        hash(key)
    except TypeError:
        return repr(type(key))
    return key


def _short(error: Exception) -> str:
    text = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return text or type(error).__name__
