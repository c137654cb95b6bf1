"""Pickles as data: a class that is no tensor's or array's becomes an `Inert` that keeps what its object held.

content = read_stream(file, size)  # a pickle, or a file of torch before 1.6
content = read_archive(archive.namelist(), archive.read)     # what torch writes since, packed or not
"""

import io
import pickle
import pickletools
import re
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from retinaserve.training.errors import UserError

UNPACK = "unpack it, and name the file or folder of weights in it"
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
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8,  # their tensors stay inert
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8,
}
NUMBERS = re.compile(r"[<>=|]?([?bB]|[iufc]\d+)")
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization


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


def read_archive(names: Iterable[str], read: Callable[[str], bytes]) -> object:
    """Read what torch writes into a zip file, packed or not."""
    pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise UserError("a zip file that torch has not written", UNPACK)
    prefix = pickles[0].removesuffix("data.pkl")
    big = f"{prefix}byteorder" in names and read(f"{prefix}byteorder") == b"big"
    known: dict[str, torch.UntypedStorage] = {}

    def storage(reference: Any) -> tuple[torch.UntypedStorage, torch.dtype]:
        dtype, key = _reference(reference)
        if key not in known:
            known[key] = _bytes(read(f"{prefix}data/{key}"), dtype, swap=big != (sys.byteorder == "big"))
        return known[key], dtype

    return _unpickle(io.BytesIO(read(pickles[0])), storage)


def read_stream(file: IO[bytes], left: int) -> Any:
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
    content = read_stream(io.BytesIO(data), len(data))
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
    try:
        array = value.numpy() if isinstance(value, _Array) else value
        if isinstance(array, np.ndarray):
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    except (AttributeError, TypeError, ValueError, pickle.UnpicklingError):
        pass  # of text or objects, or damaged
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
