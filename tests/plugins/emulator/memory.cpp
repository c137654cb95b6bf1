// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file memory.cpp
//! \brief Memory where the kernels run, for native.py: a GPU's, or the host's with RETINASERVE_CUDA.

#include <cstddef>
#include <cstdint>

#ifdef RETINASERVE_CUDA

#include RETINASERVE_CUDA

#include <cstdlib>

extern "C"
{

int32_t retinaserveAllocate(void** memory, size_t bytes)
{
    constexpr size_t kALIGNMENT = 256;
    *memory = std::aligned_alloc(kALIGNMENT, (bytes + kALIGNMENT) / kALIGNMENT * kALIGNMENT);
    return *memory == nullptr ? 2 : 0;
}

int32_t retinaserveFree(void* memory)
{
    std::free(memory);
    return 0;
}

int32_t retinaserveToDevice(void* device, void const* host, size_t bytes)
{
    std::memcpy(device, host, bytes);
    return 0;
}

int32_t retinaserveToHost(void* host, void const* device, size_t bytes)
{
    std::memcpy(host, device, bytes);
    return 0;
}

void retinaserveSetSchedule(uint32_t schedule)
{
    shim::setSchedule(schedule);
}

} // extern "C"

#else

#include <cuda_runtime_api.h>

extern "C"
{

int32_t retinaserveAllocate(void** memory, size_t bytes)
{
    return static_cast<int32_t>(cudaMalloc(memory, bytes > 0 ? bytes : 1));
}

int32_t retinaserveFree(void* memory)
{
    return static_cast<int32_t>(cudaFree(memory));
}

int32_t retinaserveToDevice(void* device, void const* host, size_t bytes)
{
    return static_cast<int32_t>(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
}

int32_t retinaserveToHost(void* host, void const* device, size_t bytes)
{
    return static_cast<int32_t>(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
}

} // extern "C"

#endif
