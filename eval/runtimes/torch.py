"""A checkpoint run by torch, on the GPU where there is one: `TorchRuntime(Path("model.pth")).run(batch)`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from retinaserve.training.checkpoint import load_model
from retinaserve.training.spec import IMAGE


class TorchRuntime:
    """Answers the raw heads."""

    name, precision, note = "torch", "fp32", ""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Load a checkpoint. Raises UserError for a file that is none."""
        if threads:
            torch.set_num_threads(threads)
        self.path = path
        self.spec, model = load_model(path)
        self.output_names = tuple(name for pair in self.spec.head_names for name in pair)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device).eval()
        self._mean = torch.tensor(self.spec.mean, device=self._device)[:, None, None]  # (3, 1, 1)
        self._std = torch.tensor(self.spec.std, device=self._device)[:, None, None]

    @torch.inference_mode()
    def run(self, batch: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the heads of a batch of any size."""
        pixels = torch.from_numpy(batch[IMAGE]).to(self._device)
        heads = self._model((pixels / 255 - self._mean) / self._std)
        tensors = [tensor.cpu().numpy() for pair in heads for tensor in pair]
        return dict(zip(self.output_names, tensors, strict=True))
