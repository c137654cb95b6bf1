// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file timing.cu
//! \brief Times on the GPU for bench.py: reading memory once, and decode and NMS in a CUDA graph.

#include "retinaserve/decode.h"
#include "retinaserve/nms.h"

#include <cuda_runtime.h>

using retinaserve::DecodeProblem;
using retinaserve::NmsProblem;

namespace
{

constexpr int32_t kREAD_THREADS = 512;
constexpr int32_t kREAD_BLOCKS = 2048;

//! Reads everything once; writes only what never comes true, so that nothing is optimised away.
__global__ void readKernel(uint4 const* data, size_t count, uint32_t* never)
{
    uint32_t bits = 0;
    size_t const step = static_cast<size_t>(gridDim.x) * blockDim.x;
    size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; i + 3 * step < count; i += 4 * step)
    {
        uint4 const a = __ldcs(data + i);
        uint4 const b = __ldcs(data + i + step);
        uint4 const c = __ldcs(data + i + 2 * step);
        uint4 const d = __ldcs(data + i + 3 * step);
        bits |= (a.x ^ a.y ^ a.z ^ a.w) | (b.x ^ b.y ^ b.z ^ b.w) | (c.x ^ c.y ^ c.z ^ c.w) | (d.x ^ d.y ^ d.z ^ d.w);
    }
    for (; i < count; i += step)
    {
        uint4 const a = __ldcs(data + i);
        bits |= a.x ^ a.y ^ a.z ^ a.w;
    }
    if (bits == 0xDEADBEEF)
    {
        *never = bits;
    }
}

//! Runs work in a stream `repeats` times, each after the L2 cache has been flushed, and times each by events.
template <typename Work>
cudaError_t timeEach(
    Work const& work, cudaStream_t stream, void* flush, size_t flushBytes, int32_t repeats, float* milliseconds)
{
    cudaEvent_t start{};
    cudaEvent_t stop{};
    cudaError_t error = cudaEventCreate(&start);
    error = error == cudaSuccess ? cudaEventCreate(&stop) : error;
    for (int32_t i = 0; i < repeats && error == cudaSuccess; ++i)
    {
        error = cudaMemsetAsync(flush, i, flushBytes, stream);
        error = error == cudaSuccess ? cudaEventRecord(start, stream) : error;
        error = error == cudaSuccess ? work() : error;
        error = error == cudaSuccess ? cudaEventRecord(stop, stream) : error;
        error = error == cudaSuccess ? cudaEventSynchronize(stop) : error;
        error = error == cudaSuccess ? cudaEventElapsedTime(milliseconds + i, start, stop) : error;
    }
    cudaEventDestroy(start);
    cudaEventDestroy(stop);
    return error;
}

} // namespace

extern "C"
{

//! Read `bytes` once, `repeats` times over. \param flush device memory to write between two times.
int32_t retinaserveTimeRead(
    void const* data, size_t bytes, void* flush, size_t flushBytes, int32_t repeats, float* milliseconds)
{
    auto const work = [&]
    {
        readKernel<<<kREAD_BLOCKS, kREAD_THREADS>>>(
            static_cast<uint4 const*>(data), bytes / sizeof(uint4), static_cast<uint32_t*>(flush));
        return cudaGetLastError();
    };
    return static_cast<int32_t>(timeEach(work, nullptr, flush, flushBytes, repeats, milliseconds));
}

//! Decode (parts & 1) and NMS (parts & 2), captured in one CUDA graph.
//! \param buffers candidates' logits, boxes, classes; num_detections, boxes, scores, classes; scratch of both;
//!     what decode keeps.
int32_t retinaserveTimeDetect(DecodeProblem const* decoding, NmsProblem const* suppressing, int32_t parts,
    void const* const* logits, void const* const* deltas, float const* letterbox, void* const* buffers, void* flush,
    size_t flushBytes, int32_t repeats, float* milliseconds)
{
    cudaStream_t stream{};
    cudaGraph_t graph{};
    cudaGraphExec_t ready{};
    cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    error = error == cudaSuccess ? cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) : error;
    auto* const candidateLogits = static_cast<float*>(buffers[0]);
    auto* const candidateBoxes = static_cast<float*>(buffers[1]);
    auto* const candidateClasses = static_cast<int32_t*>(buffers[2]);
    if (error == cudaSuccess && (parts & 1) != 0)
    {
        error = static_cast<cudaError_t>(retinaserve::decode(*decoding, logits, deltas, letterbox, candidateLogits,
            candidateBoxes, candidateClasses, buffers[7], buffers[9], stream));
    }
    if (error == cudaSuccess && (parts & 2) != 0)
    {
        error = static_cast<cudaError_t>(retinaserve::nms(*suppressing, candidateLogits, candidateBoxes,
            candidateClasses, letterbox, static_cast<int32_t*>(buffers[3]), static_cast<float*>(buffers[4]),
            static_cast<float*>(buffers[5]), static_cast<int32_t*>(buffers[6]), buffers[8], stream));
    }
    error = error == cudaSuccess ? cudaStreamEndCapture(stream, &graph) : error;
    error = error == cudaSuccess ? cudaGraphInstantiate(&ready, graph, 0) : error;
    if (error == cudaSuccess)
    {
        auto const work = [&] { return cudaGraphLaunch(ready, stream); };
        error = timeEach(work, stream, flush, flushBytes, repeats, milliseconds);
    }
    cudaGraphExecDestroy(ready);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    return static_cast<int32_t>(error);
}

} // extern "C"
