// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file decode.cuh
//! \brief One kernel from the raw heads of a batch to the sorted, decoded candidates of every level.
//!
//! A segment is one level of one image; several blocks read it, each its own part, once. What a block finds above
//! the threshold goes to a buffer in shared memory; when that is full, the block drops all but its best top-k and
//! has a bound from then on, which it shares with the segment's other blocks. The last block of a segment to be done
//! gathers what the others have left in scratch, keeps the best top-k, sorts them and decodes their boxes.
//! Bounds arrive in any order, but only ever drop keys that cannot be among the best: the result does not depend
//! on who is first.

#pragma once

#include "primitives.cuh"

namespace retinaserve
{

constexpr uint32_t kDECODE_THREADS = 512;
constexpr uint32_t kDECODE_VALUES = 32;                              //!< logits a thread reads at a time
constexpr uint32_t kDECODE_ROUND = kDECODE_THREADS * kDECODE_VALUES; //!< logits a block reads at a time
constexpr uint32_t kDECODE_LEVELS = 8;                               //!< levels a launch, at most
constexpr uint32_t kDECODE_ANCHORS = 128;                            //!< anchors a launch, at most, of all levels

//! What the blocks of a segment know of each other; zero at the start, and again at the end.
struct Segment
{
    Key bound;      //!< keys below it are not among the best
    uint32_t count; //!< keys in scratch
    uint32_t done;  //!< blocks that have put theirs there
};

struct LevelArguments
{
    void const* logits;
    void const* deltas;
    uint32_t size;  //!< logits to read, in their order in memory
    uint32_t cells; //!< h*w
    uint32_t width;
    uint32_t stride;
    uint32_t blocks;     //!< an image
    uint32_t firstBlock; //!< of the level, in the grid
    uint32_t rounds;     //!< a block
    uint32_t slots;      //!< min(topK, A*C*h*w)
    uint32_t firstSlot;  //!< of the level, in an image
    uint32_t firstAnchor;
};

struct DecodeArguments
{
    LevelArguments level[kDECODE_LEVELS];
    float4 anchors[kDECODE_ANCHORS];
    uint32_t levels;
    uint32_t batch;
    uint32_t classes;
    uint32_t channels;      //!< A*C
    uint32_t logitChannels; //!< of the tensor, like the next
    uint32_t deltaChannels;
    uint32_t channelsLast; //!< 1: (h, w, channels) an image
    uint32_t topK;
    uint32_t capacity;
    uint32_t slots; //!< N, of all levels
    float thresholdLogit;
    float deltaClamp;
    float4 const* letterbox;
    float* outLogits;
    float4* outBoxes;
    int32_t* outClasses;
    Segment* segments; //!< [levels][batch]
    Key* lists;        //!< [blocks][topK]
};

struct DecodeShared
{
    uint32_t place;
    uint32_t isLast;
    KeyBuffer<kDECODE_THREADS> buffer;

    static constexpr size_t bytes(uint32_t capacity)
    {
        return sizeof(DecodeShared) - sizeof(KeyBuffer<kDECODE_THREADS>) + KeyBuffer<kDECODE_THREADS>::bytes(capacity);
    }
};

__device__ inline float toFloat(float value)
{
    return value;
}

__device__ inline float toFloat(__half value)
{
    return __half2float(value);
}

//! 16 bytes of logits.
template <typename T>
union Unit
{
    static constexpr uint32_t kLANES = 16 / sizeof(T);
    uint4 bits;
    T lane[kLANES];
};

template <typename T>
__device__ inline Unit<T> loadUnit(T const* first)
{
    Unit<T> unit;
    unit.bits = __ldcs(reinterpret_cast<uint4 const*>(first)); // read once: do not displace others
    return unit;
}

//! \return a bit for each of a unit's logits that is at least this; NaN is not.
template <typename T>
__device__ inline uint32_t reaching(Unit<T> const& unit, float floor)
{
    uint32_t found = 0;
#pragma unroll
    for (uint32_t lane = 0; lane < Unit<T>::kLANES; ++lane)
    {
        found |= toFloat(unit.lane[lane]) >= floor ? 1U << lane : 0;
    }
    return found;
}

//! The same for a unit that begins at this index and may be outside the segment in part.
template <typename T>
__device__ inline uint32_t reachingAtEdge(T const* segment, int64_t first, uint32_t size, float floor)
{
    if (first >= 0 && first + Unit<T>::kLANES <= size)
    {
        return reaching(loadUnit(segment + first), floor);
    }
    uint32_t found = 0;
#pragma unroll 1
    for (uint32_t lane = 0; lane < Unit<T>::kLANES; ++lane)
    {
        int64_t const index = first + lane;
        found |= index >= 0 && index < size && toFloat(segment[index]) >= floor ? 1U << lane : 0;
    }
    return found;
}

//! \return the key of the logit at this place of an image's memory; 0 for one of the channels that mean nothing.
template <typename T>
__device__ inline Key keyAt(DecodeArguments const& args, LevelArguments const& level, T const* logits, int64_t place)
{
    uint32_t index = static_cast<uint32_t>(place);
    if (args.channelsLast != 0)
    {
        uint32_t const cell = index / args.logitChannels;
        uint32_t const channel = index - cell * args.logitChannels;
        if (channel >= args.channels)
        {
            return 0;
        }
        index = channel * level.cells + cell;
    }
    return makeKey(toFloat(logits[place]), index);
}

//! Read this block's part of a segment; leave its best, at most topK of them, in the buffer.
template <typename T>
__device__ inline void blockScan(
    DecodeArguments const& args, LevelArguments const& level, T const* logits, uint32_t part, Segment* segment)
{
    constexpr uint32_t kLANES = Unit<T>::kLANES;
    constexpr uint32_t kUNITS = kDECODE_VALUES / kLANES;
    static_assert(kDECODE_VALUES <= 32, "one bit a logit");
    auto& buffer = dynamicShared<DecodeShared>().buffer;
    // Units are aligned to 16 bytes, segments only to their elements: the first unit may begin before its segment.
    int64_t const before = static_cast<int64_t>((reinterpret_cast<uintptr_t>(logits) / sizeof(T)) % kLANES);
    int64_t const begin = static_cast<int64_t>(part) * level.rounds * kDECODE_ROUND - before;
    int64_t const limit = begin + static_cast<int64_t>(level.rounds) * kDECODE_ROUND;
    int64_t const end = limit < level.size ? limit : level.size;
    for (int64_t first = begin; first < end; first += kDECODE_ROUND)
    {
        int64_t const mine = first + threadIdx.x * kLANES;
        // All of a key's value bits are compared here and its index only below.
        float const floor = keyValue(buffer.bound);
        uint32_t pending = 0;
        if (first >= 0 && first + kDECODE_ROUND <= level.size)
        {
            // Asked for the whole block at once: all loads are under way before the first is waited for.
            Unit<T> units[kUNITS];
#pragma unroll
            for (uint32_t i = 0; i < kUNITS; ++i)
            {
                units[i] = loadUnit(logits + mine + i * kDECODE_THREADS * kLANES);
            }
#pragma unroll
            for (uint32_t i = 0; i < kUNITS; ++i)
            {
                pending |= reaching(units[i], floor) << (i * kLANES);
            }
        }
        else
        {
#pragma unroll 1
            for (uint32_t i = 0; i < kUNITS; ++i)
            {
                int64_t const unit = mine + i * kDECODE_THREADS * kLANES;
                pending |= reachingAtEdge(logits, unit, level.size, floor) << (i * kLANES);
            }
        }
        // Read again, for the few that it is asked for, rather than kept in 32 registers.
        auto const keyOf = [&args, &level, logits, mine](uint32_t i)
        { return keyAt(args, level, logits, mine + i / kLANES * kDECODE_THREADS * kLANES + i % kLANES); };
        Key* const shared = level.blocks > 1 ? &segment->bound : nullptr;
        blockOffer<kDECODE_THREADS>(buffer, args.capacity, args.topK, shared, pending, keyOf);
    }
    if (buffer.count > args.topK)
    {
        blockPrune<kDECODE_THREADS>(buffer, args.capacity, args.topK, level.blocks > 1 ? &segment->bound : nullptr);
    }
}

//! Put the block's keys into the segment's list. \return whether this block is the last to do so.
__device__ inline bool blockHandOver(LevelArguments const& level, Segment* segment, Key* list)
{
    auto& shared = dynamicShared<DecodeShared>();
    uint32_t const count = shared.buffer.count;
    if (threadIdx.x == 0)
    {
        shared.place = count > 0 ? atomicAdd(&segment->count, count) : 0;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < count; i += kDECODE_THREADS)
    {
        list[shared.place + i] = shared.buffer.keys[i];
    }
    __syncthreads();
    if (threadIdx.x == 0)
    {
        shared.isLast = isLastToFinish(&segment->done, level.blocks) ? 1 : 0;
    }
    __syncthreads();
    return shared.isLast != 0;
}

//! Leave the best of a segment's list in the buffer.
__device__ inline void blockGather(DecodeArguments const& args, Segment* segment, Key const* list)
{
    constexpr uint32_t kKEYS = 8;
    auto& shared = dynamicShared<DecodeShared>();
    if (threadIdx.x == 0)
    {
        shared.place = segment->count;
        shared.buffer.count = 0;
        shared.buffer.bound = max(shared.buffer.bound, segment->bound);
        // For the next call. No other block looks at it any more; `done` alone is changed behind their fences.
        segment->bound = 0;
        segment->count = 0;
        atomicExch(&segment->done, 0U);
    }
    __syncthreads();
    uint32_t const count = shared.place;
    for (uint32_t first = 0; first < count; first += kKEYS * kDECODE_THREADS)
    {
        uint32_t pending = 0;
        Key const bound = shared.buffer.bound;
#pragma unroll
        for (uint32_t i = 0; i < kKEYS; ++i)
        {
            uint32_t const index = first + i * kDECODE_THREADS + threadIdx.x;
            pending |= index < count && list[index] >= bound ? 1U << i : 0;
        }
        auto const keyOf = [list, first](uint32_t i) { return list[first + i * kDECODE_THREADS + threadIdx.x]; };
        blockOffer<kDECODE_THREADS>(shared.buffer, args.capacity, args.topK, nullptr, pending, keyOf);
    }
    if (shared.buffer.count > args.topK)
    {
        blockPrune<kDECODE_THREADS>(shared.buffer, args.capacity, args.topK, nullptr);
    }
}

//! \return a candidate's box in letterboxed pixels. Rounded operation by operation, as the reference's is.
template <typename T>
__device__ inline float4 decodeBox(
    DecodeArguments const& args, LevelArguments const& level, T const* deltas, uint32_t index, float4 letterbox)
{
    uint32_t const channel = index / level.cells;
    uint32_t const cell = index - channel * level.cells;
    uint32_t const anchor = channel / args.classes;
    uint32_t const y = cell / level.width;
    uint32_t const x = cell - y * level.width;
    int64_t const step = args.channelsLast != 0 ? 1 : level.cells; // from one channel to the next
    int64_t const ofCell = static_cast<int64_t>(cell) * (args.channelsLast != 0 ? args.deltaChannels : 1);
    T const* const delta = deltas + anchor * 4 * step + ofCell;
    float4 const box = args.anchors[level.firstAnchor + anchor];

    auto const along = [&](float low, float high, uint32_t place, float shift, float growth, float limit)
    {
        float const size = __fsub_rn(high, low);
        float const centre = __fmul_rn(__fadd_rn(low, high), 0.5F);
        float const origin = static_cast<float>(place * level.stride);
        float const middle = __fadd_rn(__fmul_rn(shift, size), __fadd_rn(centre, origin));
        float const half = __fmul_rn(__fmul_rn(expf(fminf(growth, args.deltaClamp)), size), 0.5F);
        float const first = fminf(fmaxf(__fsub_rn(middle, half), 0.0F), limit);
        float const last = fminf(fmaxf(__fadd_rn(middle, half), 0.0F), limit);
        return make_float2(first, last);
    };
    float const dx = toFloat(delta[0]);
    float const dy = toFloat(delta[step]);
    float const dw = toFloat(delta[step * 2]);
    float const dh = toFloat(delta[step * 3]);
    float2 const h = along(box.x, box.z, x, dx, dw, letterbox.w);
    float2 const v = along(box.y, box.w, y, dy, dh, letterbox.z);
    return make_float4(h.x, v.x, h.y, v.y);
}

//! Sort the buffer's keys and write all slots of a segment.
template <typename T>
__device__ inline void blockWrite(
    DecodeArguments const& args, LevelArguments const& level, T const* deltas, uint32_t image)
{
    auto& buffer = dynamicShared<DecodeShared>().buffer;
    uint32_t const count = buffer.count;
    uint32_t size = 1;
    while (size < count)
    {
        size *= 2;
    }
    for (uint32_t i = count + threadIdx.x; i < size; i += kDECODE_THREADS)
    {
        buffer.keys[i] = 0;
    }
    blockSort<kDECODE_THREADS>(buffer.keys, size);

    float4 const letterbox = args.letterbox[image];
    int64_t const base = static_cast<int64_t>(image) * args.slots + level.firstSlot;
    for (uint32_t slot = threadIdx.x; slot < level.slots; slot += kDECODE_THREADS)
    {
        float logit = -INFINITY;
        float4 box = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
        int32_t label = 0;
        if (slot < count)
        {
            Key const key = buffer.keys[slot];
            uint32_t const index = keyIndex(key);
            logit = keyValue(key);
            box = decodeBox(args, level, deltas, index, letterbox);
            label = static_cast<int32_t>(index / level.cells % args.classes);
        }
        args.outLogits[base + slot] = logit;
        args.outBoxes[base + slot] = box;
        args.outClasses[base + slot] = label;
    }
}

//! One block a part of a segment; the grid goes through levels, images, parts. Two blocks an SM, so that one works
//! while the other waits.
template <typename T>
__global__ void __launch_bounds__(kDECODE_THREADS, 2) decodeKernel(RETINASERVE_ARGUMENTS DecodeArguments args)
{
    uint32_t l = 0;
    while (l + 1 < args.levels && blockIdx.x >= args.level[l + 1].firstBlock)
    {
        ++l;
    }
    LevelArguments const& level = args.level[l];
    uint32_t const image = (blockIdx.x - level.firstBlock) / level.blocks;
    uint32_t const part = (blockIdx.x - level.firstBlock) % level.blocks;
    Segment* const segment = args.segments + static_cast<int64_t>(l) * args.batch + image;
    int64_t const cells = static_cast<int64_t>(image) * level.cells; // of the images before
    T const* const logits = static_cast<T const*>(level.logits) + cells * args.logitChannels;
    T const* const deltas = static_cast<T const*>(level.deltas) + cells * args.deltaChannels;

    auto& shared = dynamicShared<DecodeShared>();
    if (threadIdx.x == 0)
    {
        // Not the bound that others have found: it would be waited for. Whoever has many learns it when it prunes.
        shared.buffer.bound = (static_cast<Key>(orderedBits(args.thresholdLogit)) + 1) << 32;
        shared.buffer.count = 0;
    }
    __syncthreads();
    blockScan(args, level, logits, part, segment);
    if (level.blocks > 1)
    {
        uint32_t const firstBlock = level.firstBlock + image * level.blocks;
        Key* const list = args.lists + static_cast<int64_t>(firstBlock) * args.topK;
        if (!blockHandOver(level, segment, list))
        {
            return;
        }
        blockGather(args, segment, list);
    }
    blockWrite(args, level, deltas, image);
}

} // namespace retinaserve
