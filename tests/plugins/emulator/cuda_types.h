// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file cuda_types.h
//! \brief CUDA's types and arithmetic as far as the kernels use them: for both emulations.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __device__
#define __global__ inline
#define __launch_bounds__(...)
#define RETINASERVE_ARGUMENTS const

struct CUstream_st;
using cudaStream_t = CUstream_st*;
constexpr int32_t cudaErrorInvalidValue = 1;
constexpr int32_t cudaErrorLaunchFailure = 719;

struct dim3
{
    uint32_t x, y, z;

    constexpr dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1)
        : x(x_)
        , y(y_)
        , z(z_)
    {
    }
};

struct alignas(16) uint4
{
    uint32_t x, y, z, w;
};

struct float2
{
    float x, y;
};

struct alignas(16) float4
{
    float x, y, z, w;
};

struct __half
{
    uint16_t bits;
};

inline float2 make_float2(float x, float y)
{
    return {x, y};
}

inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

template <typename T>
inline T min(T a, T b)
{
    return b < a ? b : a;
}

template <typename T>
inline T max(T a, T b)
{
    return a < b ? b : a;
}

template <typename T>
inline T __ldcs(T const* place)
{
    return *place;
}

inline int __popc(uint32_t bits)
{
    return __builtin_popcount(bits);
}

inline int __ffs(int bits)
{
    return __builtin_ffs(bits);
}

inline int __ffsll(long long bits)
{
    return __builtin_ffsll(bits);
}

inline uint32_t __float_as_uint(float value)
{
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

inline float __uint_as_float(uint32_t bits)
{
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

// Compiled with -ffp-contract=off, so that nothing is fused here either.
inline float __fadd_rn(float a, float b)
{
    return a + b;
}

inline float __fsub_rn(float a, float b)
{
    return a - b;
}

inline float __fmul_rn(float a, float b)
{
    return a * b;
}

inline float __fdiv_rn(float a, float b)
{
    return a / b;
}

inline float __half2float(__half half)
{
    uint32_t const sign = static_cast<uint32_t>(half.bits & 0x8000U) << 16;
    uint32_t const exponent = (half.bits >> 10) & 0x1FU;
    uint32_t const fraction = half.bits & 0x3FFU;
    if (exponent == 0x1FU)
    {
        return __uint_as_float(sign | 0x7F800000U | fraction << 13);
    }
    if (exponent == 0)
    {
        float const value = static_cast<float>(fraction) * 0x1p-24F;
        return sign != 0 ? -value : value;
    }
    return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

namespace retinaserve
{

template <typename Arguments>
struct Launch
{
    void (*kernel)(Arguments const);
    Arguments const* arguments;

    //! For schedulers, which know no types. \param launch a Launch of these arguments.
    static void run(void const* launch)
    {
        auto const& mine = *static_cast<Launch const*>(launch);
        mine.kernel(*mine.arguments);
    }
};

inline void* allocateZeros(size_t bytes)
{
    return std::calloc(bytes, 1);
}

inline void release(void* memory)
{
    std::free(memory);
}

} // namespace retinaserve
