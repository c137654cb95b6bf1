"""The compiled kernels from Python, on NumPy arrays and with the signatures of plugins/reference.py.

    kernels = Kernels(Path("build/plugins/libretinaserve_kernels.so"))       # from `make plugins`: on a GPU
    kernels = Kernels(compile_for_cpu(Path("build/cpu.so")), guard=256)      # the same kernels, emulated on a CPU
    logits, boxes, classes = kernels.decode(logits, deltas, letterbox, anchors=table, strides=(8, 16), ...)

Every call copies its arrays to the device and back.
"""

import ctypes
import subprocess
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PLUGINS = HERE.parents[2] / "plugins"
CPU_FLAGS = (
    "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",  # it takes a longjmp between two stacks for an overflow
    "-fPIC", "-shared", '-DRETINASERVE_CUDA="cuda_on_cpu.h"', f"-I{PLUGINS / 'include'}", f"-I{HERE}",
)  # fmt: skip
KERNELS = tuple(PLUGINS / "kernels" / f"{name}.cu" for name in ("decode", "nms"))
INTERFACE = (HERE / "kernels.cpp", HERE / "memory.cpp")
# How heads may lie in memory: channels are a multiple of this, and are last.
LAYOUTS = {"linear": (1, False), "linear, filled": (8, False), "kHWC": (1, True), "kHWC8": (8, True)}
KEPT_BYTES = 128 * 1024  # kKEPT_BYTES of include/retinaserve/decode.h
GARBAGE = 0xA5  # what scratch, outputs and guards hold before a call


def compile_for_cpu(library, sources=(*KERNELS, *INTERFACE), flags=()):
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
        ("logit_channels", c_int32),
        ("delta_channels", c_int32),
        ("channels_last", c_int32),
    )

    @classmethod
    def create(
        cls, batch, sizes, *, classes, anchors, strides, threshold_logit, topk, delta_clamp, half_precision,
        layout="linear",
    ):  # fmt: skip
        """Return the problem of maps of these (h, w) sizes; anchors: (levels, A, 4); layout: of LAYOUTS."""
        table = np.ascontiguousarray(anchors, np.float32)
        vector, last = LAYOUTS[layout]
        many = c_int32 * len(sizes)
        heights, widths = zip(*sizes, strict=True)
        channels = [rounded_up(table.shape[1] * each, vector) for each in (classes, 4)]
        return cls(
            batch, len(sizes), classes, table.shape[1], many(*heights), many(*widths), many(*strides),
            (c_float * table.size)(*table.ravel().tolist()), threshold_logit, delta_clamp, topk,
            int(half_precision), *channels, last,
        )  # fmt: skip


class NmsProblem(ctypes.Structure):
    """retinaserve::NmsProblem of include/retinaserve/nms.h."""

    _fields_ = (("batch", c_int32), ("candidates", c_int32), ("max_detections", c_int32), ("iou", c_float))


class Memory:
    """An array's place on the device, between two guards that nothing may write to; freed with `free`.

    Without guards the array is not copied on the host, and scratch is left as it was allocated: compute-sanitizer
    sees then who reads it unwritten.
    """

    def __init__(self, kernels, array, *, is_scratch=False):
        self._kernels = kernels
        array = np.ascontiguousarray(array)
        self._array, self.shape = array, array.shape
        self._host = array.reshape(-1).view(np.uint8)
        if kernels.guard:
            edge = np.full(kernels.guard, GARBAGE, np.uint8)
            self._host = np.concatenate((edge, self._host, edge))
        self._device = c_void_p()
        kernels.check(kernels.library.retinaserveAllocate(byref(self._device), self._host.nbytes))
        if kernels.guard or not is_scratch:
            kernels.check(kernels.library.retinaserveToDevice(self._device, self._pointer(), self._host.nbytes))
        self.address = (self._device.value or 0) + kernels.guard

    def _pointer(self):
        return c_void_p(self._host.ctypes.data)

    def read(self):
        """Return what is there now. Raises RuntimeError where a guard was written to."""
        guard = self._kernels.guard
        self._kernels.check(
            self._kernels.library.retinaserveToHost(self._pointer(), self._device, self._host.nbytes)
        )
        inner = self._host[guard : len(self._host) - guard]
        if (self._host[:guard] != GARBAGE).any() or (self._host[guard + len(inner) :] != GARBAGE).any():
            raise RuntimeError("a kernel wrote outside its array")
        return inner.view(self._array.dtype).reshape(self._array.shape)

    def write(self, array):
        """Replace what is there by an array of the same size."""
        guard = self._kernels.guard
        self._host[guard : len(self._host) - guard] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._kernels.check(
            self._kernels.library.retinaserveToDevice(self._device, self._pointer(), self._host.nbytes)
        )

    def free(self):
        """Check the guards and give the memory back."""
        if self._kernels.guard:
            self.read()
        self._kernels.check(self._kernels.library.retinaserveFree(self._device))


def garbage(shape, dtype):
    """Return an array of bytes that are no sensible value of any type."""
    return np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, GARBAGE, np.uint8).view(dtype).reshape(shape)


def rounded_up(value, multiple):
    """Return the next multiple that is not below a value."""
    return -(-value // multiple) * multiple


def laid_out(level, layout):
    """Return a head (B, C, h, w) in a layout of LAYOUTS, with garbage in the channels that mean nothing."""
    vector, last = LAYOUTS[layout]
    batch, channels, height, width = level.shape
    if not last and channels % vector == 0:
        return level  # not copied: one of the tests has 8.85 GB
    filled = garbage((batch, rounded_up(channels, vector), height, width), level.dtype)
    filled[:, :channels] = level
    return np.ascontiguousarray(filled.transpose(0, 2, 3, 1)) if last else filled


class Kernels:
    """The shared library of the kernels; `guard` bytes around every array are watched, a multiple of 256.

    One decode after another shares what it keeps, unless `keeps` is turned off.
    """

    def __init__(self, path, *, guard=0):
        self.library = library = ctypes.CDLL(str(path))
        self.guard, self.keeps, self._kept = guard, True, None
        library.retinaserveAllocate.argtypes = (POINTER(c_void_p), c_size_t)
        library.retinaserveFree.argtypes = (c_void_p,)
        library.retinaserveToDevice.argtypes = library.retinaserveToHost.argtypes = (c_void_p, c_void_p, c_size_t)
        library.retinaserveDecodeFault.restype = library.retinaserveNmsFault.restype = c_char_p
        library.retinaserveDecodeScratchBytes.restype = library.retinaserveNmsScratchBytes.restype = c_size_t
        library.retinaserveDecodeSlots.restype = c_int64
        library.retinaserveDecode.argtypes = (
            POINTER(DecodeProblem), POINTER(c_void_p), POINTER(c_void_p), *[c_void_p] * 7,
        )  # fmt: skip
        library.retinaserveNms.argtypes = (POINTER(NmsProblem), *[c_void_p] * 10)

    def check(self, error):
        """Raise RuntimeError unless a call's cudaError_t is success."""
        if error:
            raise RuntimeError(f"the kernels failed with cudaError_t {error}")

    def set_schedule(self, schedule):
        """Choose the emulation's order of blocks and threads: 0 forwards, 1 backwards, else a seed."""
        self.library.retinaserveSetSchedule(c_uint32(schedule))

    def _fault(self, problem):
        decode = isinstance(problem, DecodeProblem)
        return (self.library.retinaserveDecodeFault if decode else self.library.retinaserveNmsFault)(
            byref(problem)
        )

    def scratch_bytes(self, problem):
        """Return the bytes of scratch a problem needs on the device."""
        decode = isinstance(problem, DecodeProblem)
        call = self.library.retinaserveDecodeScratchBytes if decode else self.library.retinaserveNmsScratchBytes
        return int(call(byref(problem)))

    def _run(self, problem, call, inputs, shapes):
        """Return the outputs of a call that takes the addresses of inputs, and of outputs and scratch."""
        given = [Memory(self, array) for array in inputs]
        outputs = [Memory(self, garbage(shape, dtype)) for shape, dtype in shapes]
        scratch = Memory(self, garbage((self.scratch_bytes(problem),), np.uint8), is_scratch=True)
        self.check(call([each.address for each in given], [each.address for each in (*outputs, scratch)]))
        found = tuple(each.read().copy() for each in outputs)
        for each in (*given, *outputs, scratch):
            each.free()
        return found

    def decode(
        self, logits, deltas, letterbox, *, anchors, strides, threshold_logit, topk, delta_clamp, layout="linear"
    ):  # fmt: skip
        """Run the decode kernels; arguments and results are those of retinaserve.plugins.reference.decode."""
        batch, channels = logits[0].shape[:2]
        problem = DecodeProblem.create(
            batch, [(level.shape[2], level.shape[3]) for level in logits], classes=channels // anchors.shape[1],
            anchors=anchors, strides=strides, threshold_logit=threshold_logit, topk=topk, delta_clamp=delta_clamp,
            half_precision=logits[0].dtype == np.float16, layout=layout,
        )  # fmt: skip
        logits, deltas = ([laid_out(level, layout) for level in part] for part in (logits, deltas))
        if fault := self._fault(problem):
            raise ValueError(fault.decode())
        slots = self.library.retinaserveDecodeSlots(byref(problem))
        levels = len(logits)
        heads = c_void_p * levels

        if self.keeps and not self._kept:
            self._kept = self.memory_kept()
        kept = self._kept.address if self.keeps else None

        def call(given, others):
            return self.library.retinaserveDecode(
                byref(problem), heads(*given[:levels]), heads(*given[levels:-1]), given[-1], *others, kept, None
            )

        shapes = ((batch, slots), np.float32), ((batch, slots, 4), np.float32), ((batch, slots), np.int32)
        found = self._run(problem, call, (*logits, *deltas, letterbox.astype(np.float32)), shapes)
        if self.keeps and self._kept.read().any():
            raise RuntimeError("decode left something in what it keeps")
        return found

    def memory_kept(self):
        """Return what one decode after another may share."""
        return Memory(self, np.zeros(KEPT_BYTES, np.uint8))

    def nms(self, logits, boxes, classes, letterbox, *, iou, max_detections):
        """Run the NMS kernels; arguments and results are those of retinaserve.plugins.reference.nms."""
        batch, count = logits.shape
        problem = NmsProblem(batch, count, max_detections, iou)
        if fault := self._fault(problem):
            raise ValueError(fault.decode())

        def call(given, others):
            return self.library.retinaserveNms(byref(problem), *given, *others, None)

        shapes = (
            ((batch, 1), np.int32), ((batch, max_detections, 4), np.float32),
            ((batch, max_detections), np.float32), ((batch, max_detections), np.int32),
        )  # fmt: skip
        return self._run(problem, call, (logits, boxes, classes, letterbox.astype(np.float32)), shapes)
