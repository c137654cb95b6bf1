"""The compiled kernels from Python, on NumPy arrays and with the signatures of plugins/reference.py.

    kernels = Kernels(Path("build/plugins/libretinaserve_kernels.so"))       # from `make plugins`: on a GPU
    kernels = Kernels(compile_for_cpu(Path("build/cpu.so")), guard=256)      # the same kernels, emulated on a CPU
    logits, boxes, classes = kernels.decode(logits, deltas, letterbox, anchors=table, strides=(8, 16), ...)

For tests and benchmarks: every call copies its arrays to the device and back. TensorRT is not involved; the
plugins around the kernels are in plugins/adapter/.
"""

import ctypes
import subprocess
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from retinaserve.plugins.reference import FloatArray, Floats, IntArray

FOLDER = Path(__file__).parent
CPU_FLAGS = (
    "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",  # it takes a longjmp between two stacks for an overflow
    "-fPIC", "-shared", "-DRETINASERVE_CPU", f"-I{FOLDER / 'include'}",
)  # fmt: skip
KERNELS = tuple(FOLDER / "kernels" / f"{name}.cu" for name in ("decode", "nms"))
INTERFACE = tuple(FOLDER / "capi" / f"{name}.cpp" for name in ("kernels", "memory"))
GARBAGE = 0xA5  # what scratch, outputs and guards hold before a call


def compile_for_cpu(
    library: Path, sources: Sequence[Path] = (*KERNELS, *INTERFACE), flags: Sequence[str] = ()
) -> Path:
    """Compile sources for the CPU emulation with g++ and return the library."""
    command = ["g++", *CPU_FLAGS, "-x", "c++", *map(str, sources), *flags, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"g++ failed:\n{done.stderr}")
    return library


class DecodeProblem(ctypes.Structure):
    """retinaserve::DecodeProblem of include/retinaserve/decode.h."""

    _fields_ = (
        ("batch", c_int32),
        ("levels", c_int32),
        ("classes", c_int32),
        ("anchors_per_cell", c_int32),
        ("heights", POINTER(c_int32)),
        ("widths", POINTER(c_int32)),
        ("strides", POINTER(c_int32)),
        ("anchors", POINTER(c_float)),
        ("threshold_logit", c_float),
        ("delta_clamp", c_float),
        ("topk", c_int32),
        ("half_precision", c_int32),
    )

    @classmethod
    def create(
        cls,
        batch: int,
        sizes: Sequence[tuple[int, int]],
        *,
        classes: int,
        anchors: Floats,
        strides: Sequence[int],
        threshold_logit: float,
        topk: int,
        delta_clamp: float,
        half_precision: bool,
    ) -> Self:
        """Return the problem of feature maps of these (h, w) sizes; anchors: (levels, A, 4)."""
        table = np.ascontiguousarray(anchors, np.float32)
        many = c_int32 * len(sizes)
        heights, widths = zip(*sizes, strict=True)
        return cls(
            batch, len(sizes), classes, table.shape[1], many(*heights), many(*widths), many(*strides),
            (c_float * table.size)(*table.ravel().tolist()), threshold_logit, delta_clamp, topk,
            int(half_precision),
        )  # fmt: skip


class NmsProblem(ctypes.Structure):
    """retinaserve::NmsProblem of include/retinaserve/nms.h."""

    _fields_ = (("batch", c_int32), ("candidates", c_int32), ("max_detections", c_int32), ("iou", c_float))


class Memory:
    """An array's place on the device, between two guards that nothing may write to; freed with `free`.

    Without guards, scratch is left as it was allocated: compute-sanitizer sees then who reads it unwritten.
    """

    def __init__(self, kernels: "Kernels", array: npt.NDArray[Any], *, is_scratch: bool = False) -> None:
        self._kernels = kernels
        self._array = array = np.ascontiguousarray(array)
        edge = np.full(kernels.guard, GARBAGE, np.uint8)
        self._host = np.concatenate((edge, array.reshape(-1).view(np.uint8), edge))
        self._device = c_void_p()
        kernels.check(kernels.library.retinaserveAllocate(byref(self._device), self._host.nbytes))
        if kernels.guard or not is_scratch:
            kernels.check(kernels.library.retinaserveToDevice(self._device, self._pointer(), self._host.nbytes))
        self.address = (self._device.value or 0) + kernels.guard

    def _pointer(self) -> c_void_p:
        return c_void_p(self._host.ctypes.data)

    def read(self) -> npt.NDArray[Any]:
        """Return what is there now. Raises RuntimeError where a guard was written to."""
        guard = self._kernels.guard
        self._kernels.check(
            self._kernels.library.retinaserveToHost(self._pointer(), self._device, self._host.nbytes)
        )
        inner = self._host[guard : len(self._host) - guard]
        if (self._host[:guard] != GARBAGE).any() or (self._host[guard + len(inner) :] != GARBAGE).any():
            raise RuntimeError("a kernel wrote outside its array")
        return inner.view(self._array.dtype).reshape(self._array.shape)

    def free(self) -> None:
        """Check the guards and give the memory back."""
        if self._kernels.guard:
            self.read()
        self._kernels.check(self._kernels.library.retinaserveFree(self._device))


def garbage(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an array of bytes that are no sensible value of any type."""
    return np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, GARBAGE, np.uint8).view(dtype).reshape(shape)


class Kernels:
    """The shared library of the kernels; `guard` bytes around every array are watched, a multiple of 256."""

    def __init__(self, path: Path, *, guard: int = 0) -> None:
        self.library = ctypes.CDLL(str(path))
        self.guard = guard
        library = self.library
        library.retinaserveAllocate.argtypes = (POINTER(c_void_p), c_size_t)
        library.retinaserveFree.argtypes = (c_void_p,)
        library.retinaserveToDevice.argtypes = library.retinaserveToHost.argtypes = (c_void_p, c_void_p, c_size_t)
        for name in ("retinaserveDecodeFault", "retinaserveNmsFault"):
            getattr(library, name).restype = c_char_p
        for name in ("retinaserveDecodeScratchBytes", "retinaserveNmsScratchBytes"):
            getattr(library, name).restype = c_size_t
        library.retinaserveDecodeSlots.restype = c_int64
        library.retinaserveDecode.argtypes = (
            POINTER(DecodeProblem), POINTER(c_void_p), POINTER(c_void_p), *[c_void_p] * 6,
        )  # fmt: skip
        library.retinaserveNms.argtypes = (POINTER(NmsProblem), *[c_void_p] * 10)

    def check(self, error: int) -> None:
        """Raise RuntimeError unless a call's cudaError_t is success."""
        if error:
            raise RuntimeError(f"the kernels failed with cudaError_t {error}")

    def set_schedule(self, schedule: int) -> None:
        """Choose the emulation's order of blocks and threads: 0 forwards, 1 backwards, else a seed."""
        self.library.retinaserveSetSchedule(c_uint32(schedule))

    def scratch_bytes(self, problem: DecodeProblem | NmsProblem) -> int:
        """Return the bytes of scratch a problem needs on the device."""
        decode = isinstance(problem, DecodeProblem)
        call = self.library.retinaserveDecodeScratchBytes if decode else self.library.retinaserveNmsScratchBytes
        return int(call(byref(problem)))

    def decode(
        self,
        logits: Sequence[Floats],
        deltas: Sequence[Floats],
        letterbox: Floats,
        *,
        anchors: Floats,
        strides: Sequence[int],
        threshold_logit: float,
        topk: int,
        delta_clamp: float,
    ) -> tuple[FloatArray, FloatArray, IntArray]:
        """Run the decode kernels; arguments and results are those of retinaserve.plugins.reference.decode."""
        batch, channels = logits[0].shape[:2]
        problem = DecodeProblem.create(
            batch, [(level.shape[2], level.shape[3]) for level in logits], classes=channels // anchors.shape[1],
            anchors=anchors, strides=strides, threshold_logit=threshold_logit, topk=topk, delta_clamp=delta_clamp,
            half_precision=logits[0].dtype == np.float16,
        )  # fmt: skip
        fault = self.library.retinaserveDecodeFault(byref(problem))
        if fault:
            raise ValueError(fault.decode())
        slots = self.library.retinaserveDecodeSlots(byref(problem))
        scratch = garbage((self.scratch_bytes(problem),), np.uint8)
        inputs = [Memory(self, array) for array in (*logits, *deltas, letterbox.astype(np.float32))]
        shapes: tuple[tuple[tuple[int, ...], npt.DTypeLike], ...] = (
            ((batch, slots), np.float32),
            ((batch, slots, 4), np.float32),
            ((batch, slots), np.int32),
        )
        outputs = [Memory(self, garbage(shape, dtype)) for shape, dtype in shapes]
        space = Memory(self, scratch, is_scratch=True)
        heads = c_void_p * len(logits)
        error = self.library.retinaserveDecode(
            byref(problem),
            heads(*(memory.address for memory in inputs[: len(logits)])),
            heads(*(memory.address for memory in inputs[len(logits) : -1])),
            inputs[-1].address, *(memory.address for memory in outputs), space.address, None,
        )  # fmt: skip
        self.check(error)
        best, boxes, labels = (memory.read().copy() for memory in outputs)
        for memory in (*inputs, *outputs, space):
            memory.free()
        return best, boxes, labels

    def nms(
        self,
        logits: FloatArray,
        boxes: FloatArray,
        classes: IntArray,
        letterbox: Floats,
        *,
        iou: float,
        max_detections: int,
    ) -> tuple[IntArray, FloatArray, FloatArray, IntArray]:
        """Run the NMS kernels; arguments and results are those of retinaserve.plugins.reference.nms."""
        batch, count = logits.shape
        problem = NmsProblem(batch, count, max_detections, iou)
        fault = self.library.retinaserveNmsFault(byref(problem))
        if fault:
            raise ValueError(fault.decode())
        scratch = garbage((self.scratch_bytes(problem),), np.uint8)
        inputs = [Memory(self, array) for array in (logits, boxes, classes, letterbox.astype(np.float32))]
        shapes: tuple[tuple[tuple[int, ...], npt.DTypeLike], ...] = (
            ((batch, 1), np.int32),
            ((batch, max_detections, 4), np.float32),
            ((batch, max_detections), np.float32),
            ((batch, max_detections), np.int32),
        )
        outputs = [Memory(self, garbage(shape, dtype)) for shape, dtype in shapes]
        space = Memory(self, scratch, is_scratch=True)
        error = self.library.retinaserveNms(
            byref(problem), *(memory.address for memory in (*inputs, *outputs, space)), None
        )
        self.check(error)
        counts, found, scores, labels = (memory.read().copy() for memory in outputs)
        for memory in (*inputs, *outputs, space):
            memory.free()
        return counts, found, scores, labels
