// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file cuda_with_races.h
//! \brief CUDA as race_detector.cpp runs it: several blocks at once, interrupted at any access, every access watched.
//!
//! The kernels are compiled with -fsanitize=thread for its instrumentation alone. A barrier, fence or atomic knows the
//! line it stands in, and can be taken away there (detectorRemove): then the detector has to notice.

#pragma once

#include "cuda_types.h"

namespace detector
{

bool isRemoved(char const* file, int32_t line);
void barrier();
int32_t barrierOr(int32_t value);
void fence();
//! An atomic operation is about to be done on global or shared memory.
void atomic(void const* place, size_t bytes, void const* caller);
//! What an atomic operation is that is none.
void plain(void const* place, size_t bytes, bool isWrite, void const* caller);
uint32_t thread();
dim3 block();
void* sharedMemory();
int32_t run(void (*body)(void const*), void const* arguments, dim3 grid, dim3 block, size_t sharedBytes);
void clear(void* memory, size_t bytes);

} // namespace detector

struct ThreadIndex
{
    struct
    {
        operator uint32_t() const
        {
            return detector::thread();
        }
    } x;
};

struct BlockIndex
{
    struct
    {
        operator uint32_t() const
        {
            return detector::block().x;
        }
    } x;
    struct
    {
        operator uint32_t() const
        {
            return detector::block().y;
        }
    } y;
    struct
    {
        operator uint32_t() const
        {
            return detector::block().z;
        }
    } z;
};

inline ThreadIndex threadIdx;
inline BlockIndex blockIdx;
inline dim3 blockDim;
inline dim3 gridDim;

inline void __syncthreads(char const* file = __builtin_FILE(), int32_t line = __builtin_LINE())
{
    if (!detector::isRemoved(file, line))
    {
        detector::barrier();
    }
}

inline int32_t __syncthreads_or(int32_t value, char const* file = __builtin_FILE(), int32_t line = __builtin_LINE())
{
    return detector::isRemoved(file, line) ? value : detector::barrierOr(value);
}

inline void __threadfence(char const* file = __builtin_FILE(), int32_t line = __builtin_LINE())
{
    if (!detector::isRemoved(file, line))
    {
        detector::fence();
    }
}

//! Not instrumented itself: what it does to memory is what it tells the detector.
template <typename T, typename Change>
__attribute__((no_sanitize("thread"))) T readModifyWrite(
    T* place, Change const& change, char const* file, int32_t line, void const* caller)
{
    if (!detector::isRemoved(file, line))
    {
        detector::atomic(place, sizeof(T), caller);
        T const before = *place;
        *place = change(before);
        return before;
    }
    detector::plain(place, sizeof(T), false, caller);
    T const before = *place;
    T const after = change(before);
    detector::plain(place, sizeof(T), true, caller);
    *place = after;
    return before;
}

#define RETINASERVE_ATOMIC(name, expression)                                                                           \
    template <typename T>                                                                                              \
    __attribute__((noinline)) T name(                                                                                  \
        T* place, T value, char const* file = __builtin_FILE(), int32_t line = __builtin_LINE())                       \
    {                                                                                                                  \
        auto const change = [value](T before) -> T { return expression; };                                             \
        return readModifyWrite(place, change, file, line, __builtin_return_address(0));                                \
    }

RETINASERVE_ATOMIC(atomicAdd, before + value)
RETINASERVE_ATOMIC(atomicMax, before < value ? value : before)
RETINASERVE_ATOMIC(atomicOr, before | value)
RETINASERVE_ATOMIC(atomicExch, (static_cast<void>(before), value))

namespace retinaserve
{

template <typename T>
inline T& dynamicShared()
{
    return *reinterpret_cast<T*>(detector::sharedMemory());
}

template <typename Arguments>
inline int32_t launch(void (*kernel)(Arguments const), dim3 grid, dim3 block, size_t sharedBytes, cudaStream_t,
    Arguments const& arguments)
{
    Launch<Arguments> const call{kernel, &arguments};
    gridDim = grid;
    blockDim = block;
    return detector::run(Launch<Arguments>::run, &call, grid, block, sharedBytes);
}

inline int32_t clear(void* memory, size_t bytes, cudaStream_t)
{
    detector::clear(memory, bytes);
    return 0;
}

} // namespace retinaserve
