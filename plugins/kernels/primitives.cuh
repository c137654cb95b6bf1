// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file primitives.cuh
//! \brief Candidates as 64-bit keys, and what a block does with keys in shared memory: keep the best, sort.
//!
//! Written out rather than taken from CUB, because the tests run these very bodies on a CPU, where CUB does not
//! compile. Every function with "block" in its name is called by all threads of a block.

#pragma once

#include "device.cuh"

namespace retinaserve
{

//! A candidate in one number: the greater key is the better candidate. The upper half is the value, the lower half
//! the complement of its index, so that keys are distinct and ties go to the lower index. Zero is no candidate's key.
using Key = unsigned long long;

//! \return bits that order as the floats do. -0 is equal to +0, as it is for floats.
__device__ inline uint32_t orderedBits(float value)
{
    uint32_t const bits = __float_as_uint(__fadd_rn(value, 0.0F));
    return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

__device__ inline float fromOrderedBits(uint32_t bits)
{
    return __uint_as_float((bits & 0x80000000U) != 0 ? bits & 0x7FFFFFFFU : ~bits);
}

__device__ inline Key makeKey(float value, uint32_t index)
{
    return (static_cast<Key>(orderedBits(value)) << 32) | static_cast<uint32_t>(~index);
}

__device__ inline float keyValue(Key key)
{
    return fromOrderedBits(static_cast<uint32_t>(key >> 32));
}

__device__ inline uint32_t keyIndex(Key key)
{
    return ~static_cast<uint32_t>(key);
}

//! A ticket for blocks that work on one thing: what each wrote before its barrier, the last one may read after its own.
//! Called by one thread, between two barriers; its fences count for the whole block.
//! \return whether all the others have come before.
__device__ inline bool isLastToFinish(uint32_t* done, uint32_t blocks)
{
    __threadfence();
    bool const isLast = atomicAdd(done, 1U) + 1 == blocks;
    if (isLast) // the others read nothing
    {
        __threadfence();
    }
    return isLast;
}

//! Sort keys in shared memory, best first. \param size a power of two.
template <uint32_t kTHREADS>
__device__ inline void blockSort(Key* keys, uint32_t size)
{
    for (uint32_t run = 2; run <= size; run *= 2)
    {
        for (uint32_t stride = run / 2; stride > 0; stride /= 2)
        {
            __syncthreads();
            for (uint32_t i = threadIdx.x; i < size / 2; i += kTHREADS)
            {
                uint32_t const low = 2 * i - (i & (stride - 1));
                uint32_t const high = low + stride;
                Key const first = keys[low];
                Key const second = keys[high];
                bool const descending = (low & run) == 0;
                if ((first < second) == descending)
                {
                    keys[low] = second;
                    keys[high] = first;
                }
            }
        }
    }
    __syncthreads();
}

//! The best keys offered so far, in shared memory. `keys` has room for `capacity`, more than are wanted.
//! Keys below `bound` are known not to be among the best.
template <uint32_t kTHREADS>
struct KeyBuffer
{
    static constexpr uint32_t kDIGIT_BITS = 10;
    static constexpr uint32_t kBINS = 1U << kDIGIT_BITS;
    static constexpr uint32_t kBINS_A_THREAD = kBINS / kTHREADS;
    static_assert(kBINS % kTHREADS == 0, "every thread owns as many bins");

    uint32_t histogram[kBINS];
    uint32_t sums[2][kTHREADS];
    Key bound;
    uint32_t count; //!< may run ahead of capacity while keys are offered
    uint32_t digit;
    uint32_t digitCount;
    uint32_t digitRank;
    Key keys[1]; //!< [capacity]

    static constexpr size_t bytes(uint32_t capacity)
    {
        return sizeof(KeyBuffer) + (capacity - 1) * sizeof(Key);
    }
};

//! \return the sum of the values of this thread and of those behind it.
template <uint32_t kTHREADS>
__device__ inline uint32_t blockSuffixSum(uint32_t value, uint32_t (&sums)[2][kTHREADS])
{
    uint32_t const me = threadIdx.x;
    uint32_t from = 0;
    sums[from][me] = value;
    __syncthreads();
    for (uint32_t offset = 1; offset < kTHREADS; offset *= 2)
    {
        uint32_t const sum = sums[from][me] + (me + offset < kTHREADS ? sums[from][me + offset] : 0);
        from ^= 1;
        sums[from][me] = sum;
        __syncthreads();
    }
    return sums[from][me];
}

//! Radix select, from the highest digit on. \return the number that exactly `wanted` of the first `count` keys reach;
//! 0 < wanted <= count. It is done as soon as a digit ends exactly there: after two or three of seven, as a rule.
template <uint32_t kTHREADS>
__device__ inline Key blockSelect(KeyBuffer<kTHREADS>& buffer, uint32_t count, uint32_t wanted)
{
    using Buffer = KeyBuffer<kTHREADS>;
    uint32_t const me = threadIdx.x;
    Key prefix = 0;
    uint32_t low = 64;
    while (true)
    {
        uint32_t const high = low;
        low = high > Buffer::kDIGIT_BITS ? high - Buffer::kDIGIT_BITS : 0;
        uint32_t const mask = (1U << (high - low)) - 1;
        for (uint32_t bin = me; bin < Buffer::kBINS; bin += kTHREADS)
        {
            buffer.histogram[bin] = 0;
        }
        __syncthreads();
        for (uint32_t i = me; i < count; i += kTHREADS)
        {
            Key const key = buffer.keys[i];
            if (high == 64 || (key >> high) == prefix)
            {
                atomicAdd(&buffer.histogram[static_cast<uint32_t>(key >> low) & mask], 1U);
            }
        }
        __syncthreads();

        uint32_t own = 0;
        for (uint32_t i = 0; i < Buffer::kBINS_A_THREAD; ++i)
        {
            own += buffer.histogram[me * Buffer::kBINS_A_THREAD + i];
        }
        uint32_t const reaching = blockSuffixSum<kTHREADS>(own, buffer.sums);
        uint32_t above = reaching - own;
        for (uint32_t i = Buffer::kBINS_A_THREAD; i-- > 0;)
        {
            uint32_t const bin = me * Buffer::kBINS_A_THREAD + i;
            uint32_t const here = buffer.histogram[bin];
            if (above < wanted && wanted <= above + here)
            {
                buffer.digit = bin;
                buffer.digitCount = here;
                buffer.digitRank = wanted - above;
            }
            above += here;
        }
        __syncthreads();
        prefix = (high == 64 ? 0 : prefix << (high - low)) | buffer.digit;
        wanted = buffer.digitRank;
        if (buffer.digitCount == wanted || low == 0)
        {
            return prefix << low;
        }
    }
}

//! Keep the best `wanted` of more, in any order, and raise the bound to what they reach.
//! \param shared a bound that other blocks of the same segment raise too, or nullptr.
template <uint32_t kTHREADS>
__device__ inline void blockPrune(KeyBuffer<kTHREADS>& buffer, uint32_t capacity, uint32_t wanted, Key* shared)
{
    uint32_t const count = min(buffer.count, capacity);
    Key const cut = blockSelect<kTHREADS>(buffer, count, wanted);
    if (threadIdx.x == 0)
    {
        buffer.count = 0;
        Key const others = shared != nullptr ? atomicMax(shared, cut) : 0;
        buffer.bound = max(max(buffer.bound, cut), others);
    }
    for (uint32_t base = 0; base < count; base += kTHREADS)
    {
        uint32_t const i = base + threadIdx.x;
        Key const key = i < count ? buffer.keys[i] : 0;
        __syncthreads(); // all have read up to base + kTHREADS, and no more than that has been written
        if (key >= cut)
        {
            buffer.keys[atomicAdd(&buffer.count, 1U)] = key;
        }
    }
    __syncthreads();
}

//! Offer up to 32 keys a thread to the buffer: those with their bit set in `pending`, each one keyOf(i), which is
//! asked up to twice. The barrier inside is the only one while there is room.
template <uint32_t kTHREADS, typename KeyOf>
__device__ inline void blockOffer(
    KeyBuffer<kTHREADS>& buffer, uint32_t capacity, uint32_t wanted, Key* shared, uint32_t pending, KeyOf const& keyOf)
{
    while (true)
    {
        if (pending != 0)
        {
            Key const bound = buffer.bound;
            for (uint32_t rest = pending; rest != 0; rest &= rest - 1)
            {
                uint32_t const i = static_cast<uint32_t>(__ffs(static_cast<int>(rest))) - 1;
                pending &= keyOf(i) < bound ? ~(1U << i) : ~0U;
            }
        }
        if (pending != 0)
        {
            uint32_t place = atomicAdd(&buffer.count, static_cast<uint32_t>(__popc(pending)));
            for (; pending != 0 && place < capacity; pending &= pending - 1)
            {
                buffer.keys[place++] = keyOf(static_cast<uint32_t>(__ffs(static_cast<int>(pending))) - 1);
            }
        }
        if (__syncthreads_or(pending != 0 ? 1 : 0) == 0)
        {
            return;
        }
        blockPrune<kTHREADS>(buffer, capacity, wanted, shared);
    }
}

} // namespace retinaserve
