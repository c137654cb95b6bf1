// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file device.cuh
//! \brief What the kernels need of CUDA, so that the same bodies can run on something else.

#pragma once

#ifdef RETINASERVE_CUDA
#include RETINASERVE_CUDA // a header that defines all of what follows: the tests emulate it on a CPU
#else

#include <cstddef>
#include <cstdint>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

//! Kernel arguments that are indexed dynamically stay in constant memory.
#define RETINASERVE_ARGUMENTS const __grid_constant__

namespace retinaserve
{

//! The block's dynamic shared memory.
template <typename T>
__device__ inline T& dynamicShared()
{
    extern __shared__ __align__(16) unsigned char sDynamic[];
    return *reinterpret_cast<T*>(sDynamic);
}

//! Launch a kernel. \return a cudaError_t; 0 is success.
template <typename Arguments>
inline int32_t launch(void (*kernel)(Arguments const), dim3 grid, dim3 block, size_t sharedBytes, cudaStream_t stream,
    Arguments const& arguments)
{
    kernel<<<grid, block, sharedBytes, stream>>>(arguments);
    return static_cast<int32_t>(cudaGetLastError());
}

//! Set device memory to zero. \return a cudaError_t; 0 is success.
inline int32_t clear(void* memory, size_t bytes, cudaStream_t stream)
{
    return static_cast<int32_t>(cudaMemsetAsync(memory, 0, bytes, stream));
}

//! \return device memory that is zero, or nullptr. The stream is its own: the default one would disturb what others
//! capture.
inline void* allocateZeros(size_t bytes)
{
    void* memory = nullptr;
    cudaStream_t stream = nullptr;
    bool const isZero = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess
        && cudaMalloc(&memory, bytes) == cudaSuccess && cudaMemsetAsync(memory, 0, bytes, stream) == cudaSuccess
        && cudaStreamSynchronize(stream) == cudaSuccess;
    if (stream != nullptr)
    {
        cudaStreamDestroy(stream);
    }
    if (!isZero)
    {
        cudaFree(memory);
        memory = nullptr;
        cudaGetLastError(); // it is no launch that has failed
    }
    return memory;
}

inline void release(void* memory)
{
    cudaFree(memory);
}

} // namespace retinaserve

#endif
