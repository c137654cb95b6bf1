"""Files of arrays alone, which no code can be in: HDF5 and safetensors.

content = read_hdf5(Path("resnet50_coco.h5"))     # {"conv1/conv1/kernel:0": tensor, ...}
"""

from pathlib import Path
from typing import Any

import torch

from retinaserve.training.errors import UserError


def read_hdf5(path: Path) -> object:
    """Return an HDF5 file's arrays by their paths, and the texts of its attributes; links are not followed."""
    h5py = _library("h5py")
    found: dict[str, Any] = {}
    with h5py.File(path, "r") as file:
        for owner in (file, file.get("model_weights")):
            for name, value in owner.attrs.items() if owner is not None else ():
                text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
                if isinstance(text, str):
                    found[name] = text

        def visit(group: Any, prefix: str, depth: int) -> None:
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    continue
                item = group[name]
                if isinstance(item, h5py.Group) and depth < 8:
                    visit(item, f"{prefix}{name}/", depth + 1)
                elif isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
                    if item.external or item.is_virtual or item.nbytes > path.stat().st_size:
                        raise UserError(f"{prefix}{name} is not in the file, or is compressed")
                    found[prefix + name] = torch.from_numpy(item[()].astype(item.dtype.newbyteorder("=")))

        visit(file, "", 0)
    return found


def read_safetensors(path: Path) -> object:
    """Return the tensors of a safetensors file by their names."""
    _library("safetensors")
    from safetensors.torch import load_file

    return load_file(path)


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"{name} is not installed", "pip install 'retinaserve[train]'") from None
