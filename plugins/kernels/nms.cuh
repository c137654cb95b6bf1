// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file nms.cuh
//! \brief Sort all candidates of an image, then suppress in rounds of the best that are left.
//!
//! Sorting: every block sorts a tile of candidates in shared memory; then every candidate finds its rank by binary
//! search in the other tiles. Suppressing: the blocks of a round fill a bit mask, who overlaps whom, in squares of
//! 64 x 64 candidates; the last of an image's blocks to be done walks down its rows. As soon as an image has its K
//! detections, or no candidates are left, its detections are written and all later rounds return at once.

#pragma once

#include "primitives.cuh"

namespace retinaserve
{

constexpr uint32_t kSORT_THREADS = 512;
constexpr uint32_t kSORT_TILE = 1024;
constexpr uint32_t kRANK_THREADS = 256;
constexpr uint32_t kWORD = 64;                          //!< candidates a mask word
constexpr uint32_t kMASK_WORDS = 4;                     //!< columns of squares a block
constexpr uint32_t kMASK_THREADS = kWORD * kMASK_WORDS; //!< a row of each of its squares a thread
constexpr uint32_t kROUND_CANDIDATES = 2048;            //!< a round, at most

using Word = unsigned long long;

//! Where an image stands between launches.
struct ImageState
{
    uint32_t valid;    //!< candidates that are no empty slots
    uint32_t kept;     //!< detections of the rounds so far
    uint32_t finished; //!< 1: the detections are written
    uint32_t done;     //!< blocks of this round that are done
};

struct NmsArguments
{
    uint32_t candidates;    //!< N
    uint32_t maxDetections; //!< K
    float iou;
    float const* logits;
    float4 const* boxes;
    int32_t const* classes;
    float4 const* letterbox;
    int32_t* numDetections;
    float4* outBoxes;
    float* outScores;
    int32_t* outClasses;
    // Scratch, each with a row an image.
    ImageState* images;
    uint32_t* tileCounts;   //!< [tiles]: candidates of a tile that are no empty slots
    Key* tileKeys;          //!< [N]: each tile sorted, best first
    float4* sortedBoxes;    //!< [N]: best first, like the next two
    float* sortedLogits;    //!< [N]
    int32_t* sortedClasses; //!< [N]
    uint32_t* kept;         //!< [K]: ranks
    Word* suppressed;       //!< [maskStride]: of this round, by detections of earlier ones
    Word* mask;             //!< [round's candidates][maskStride]: bit c of word w: suppresses 64 * w + c
    uint32_t tiles;
    uint32_t maskRows;
    uint32_t maskStride;
    // The round.
    uint32_t start; //!< rank of its first candidate
    uint32_t count; //!< its candidates, at most
};

struct SortShared
{
    Key keys[kSORT_TILE];
};

struct MaskShared
{
    float4 boxes[kMASK_THREADS];
    int32_t classes[kMASK_THREADS];
    uint32_t hit[kMASK_WORDS][2];
    uint32_t isLast;
    // For the walk, two of each: one is read while the next is filled.
    Word square[2][kWORD];
    uint32_t gone[2][2];
    uint32_t walked[1]; //!< [K]: the round's detections, by their place in it

    static constexpr size_t bytes(uint32_t maxDetections)
    {
        return sizeof(MaskShared) + (maxDetections - 1) * sizeof(uint32_t);
    }
};

//! Sort one tile of an image; grid: tiles, images.
__global__ void __launch_bounds__(kSORT_THREADS) sortKernel(RETINASERVE_ARGUMENTS NmsArguments args)
{
    Key* const keys = dynamicShared<SortShared>().keys;
    int64_t const image = blockIdx.y;
    uint32_t const first = blockIdx.x * kSORT_TILE;
    uint32_t const size = min(args.candidates - first, kSORT_TILE);
    for (uint32_t i = threadIdx.x; i < kSORT_TILE; i += kSORT_THREADS)
    {
        float const logit = i < size ? args.logits[image * args.candidates + first + i] : -INFINITY;
        keys[i] = logit > -INFINITY ? makeKey(logit, first + i) : 0;
    }
    blockSort<kSORT_THREADS>(keys, kSORT_TILE);
    for (uint32_t i = threadIdx.x; i < kSORT_TILE; i += kSORT_THREADS)
    {
        if (i < size)
        {
            args.tileKeys[image * args.candidates + first + i] = keys[i];
        }
        bool const isLast = keys[i] != 0 && (i + 1 == kSORT_TILE || keys[i + 1] == 0);
        if (isLast || (i == 0 && keys[0] == 0))
        {
            args.tileCounts[image * args.tiles + blockIdx.x] = isLast ? i + 1 : 0;
        }
    }
    if (blockIdx.x == 0 && threadIdx.x == 0)
    {
        args.images[image] = ImageState{0, 0, 0, 0};
    }
}

//! \return how many of `count` keys, best first, are better than this one.
__device__ inline uint32_t countBetter(Key const* keys, uint32_t count, Key key)
{
    uint32_t low = 0;
    uint32_t high = count;
    while (low < high)
    {
        uint32_t const middle = (low + high) / 2;
        if (keys[middle] > key)
        {
            low = middle + 1;
        }
        else
        {
            high = middle;
        }
    }
    return low;
}

//! Bring every candidate to its rank; grid: N / threads, images.
__global__ void __launch_bounds__(kRANK_THREADS) rankKernel(RETINASERVE_ARGUMENTS NmsArguments args)
{
    int64_t const image = blockIdx.y;
    uint32_t const* const counts = args.tileCounts + image * args.tiles;
    uint32_t const place = blockIdx.x * kRANK_THREADS + threadIdx.x;
    if (place == 0)
    {
        uint32_t valid = 0;
        for (uint32_t tile = 0; tile < args.tiles; ++tile)
        {
            valid += counts[tile];
        }
        args.images[image].valid = valid;
    }
    uint32_t const own = place / kSORT_TILE;
    if (place >= args.candidates || place % kSORT_TILE >= counts[own])
    {
        return;
    }
    Key const* const keys = args.tileKeys + image * args.candidates;
    Key const key = keys[place];
    uint32_t rank = place % kSORT_TILE;
    for (uint32_t tile = 0; tile < args.tiles; ++tile)
    {
        if (tile != own)
        {
            rank += countBetter(keys + tile * kSORT_TILE, counts[tile], key);
        }
    }
    int64_t const from = image * args.candidates + keyIndex(key);
    int64_t const to = image * args.candidates + rank;
    args.sortedBoxes[to] = args.boxes[from];
    args.sortedLogits[to] = args.logits[from];
    args.sortedClasses[to] = args.classes[from];
}

//! \return whether the IoU of two boxes is above a threshold. Rounded operation by operation, as the reference's is:
//! a fused multiply-add would decide otherwise right at the threshold.
__device__ inline bool overlaps(float4 a, float4 b, float threshold)
{
    float const width = fmaxf(__fsub_rn(fminf(a.z, b.z), fmaxf(a.x, b.x)), 0.0F);
    float const height = fmaxf(__fsub_rn(fminf(a.w, b.w), fmaxf(a.y, b.y)), 0.0F);
    float const intersection = __fmul_rn(width, height);
    if (!(intersection > 0.0F))
    {
        return false;
    }
    float const areaA = __fmul_rn(__fsub_rn(a.z, a.x), __fsub_rn(a.w, a.y));
    float const areaB = __fmul_rn(__fsub_rn(b.z, b.x), __fsub_rn(b.w, b.y));
    float const all = __fsub_rn(__fadd_rn(areaA, areaB), intersection);
    return all > 0.0F && __fdiv_rn(intersection, all) > threshold;
}

__device__ inline uint32_t squaresAcross(uint32_t count)
{
    return max((count + kWORD - 1) / kWORD, 1U);
}

//! \return how many blocks of an image take part in a round of so many candidates.
__device__ inline uint32_t busyBlocks(uint32_t count, bool isFirst)
{
    uint32_t const squares = squaresAcross(count);
    uint32_t blocks = 0;
    for (uint32_t column = 0; column < squares; column += kMASK_WORDS)
    {
        blocks += min(column + kMASK_WORDS, squares) + (isFirst ? 0 : 1);
    }
    return blocks;
}

//! Fill the block's squares of the mask: whom does the row's candidate suppress, of those behind it.
__device__ inline void blockMask(
    NmsArguments const& args, int64_t image, uint32_t count, uint32_t rowSquare, uint32_t columnSquare)
{
    auto const& shared = dynamicShared<MaskShared>();
    uint32_t const group = threadIdx.x / kWORD;
    uint32_t const row = rowSquare * kWORD + threadIdx.x % kWORD;
    uint32_t const square = columnSquare + group;
    if (row >= count || square < rowSquare || square >= squaresAcross(count))
    {
        return;
    }
    int64_t const own = image * args.candidates + args.start + row;
    float4 const box = args.sortedBoxes[own];
    int32_t const label = args.sortedClasses[own];
    Word word = 0;
    for (uint32_t c = 0; c < kWORD; ++c)
    {
        uint32_t const column = square * kWORD + c;
        if (column > row && column < count && shared.classes[group * kWORD + c] == label
            && overlaps(box, shared.boxes[group * kWORD + c], args.iou))
        {
            word |= static_cast<Word>(1) << c;
        }
    }
    args.mask[(image * args.maskRows + row) * args.maskStride + square] = word;
}

//! Mark those of the block's columns that a detection of an earlier round suppresses.
__device__ inline void blockSuppress(NmsArguments const& args, int64_t image, uint32_t count, uint32_t columnSquare)
{
    auto& shared = dynamicShared<MaskShared>();
    uint32_t const column = columnSquare * kWORD + threadIdx.x;
    if (column < count)
    {
        float4 const box = shared.boxes[threadIdx.x];
        int32_t const label = shared.classes[threadIdx.x];
        uint32_t const kept = args.images[image].kept;
        bool hit = false;
        for (uint32_t k = 0; k < kept && !hit; ++k)
        {
            int64_t const other = image * args.candidates + args.kept[image * args.maxDetections + k];
            hit = args.sortedClasses[other] == label && overlaps(args.sortedBoxes[other], box, args.iou);
        }
        if (hit)
        {
            uint32_t const bit = threadIdx.x % kWORD;
            atomicOr(&shared.hit[threadIdx.x / kWORD][bit / 32], 1U << (bit % 32));
        }
    }
    __syncthreads();
    if (threadIdx.x < kMASK_WORDS && columnSquare + threadIdx.x < squaresAcross(count))
    {
        Word const high = shared.hit[threadIdx.x][1];
        args.suppressed[image * args.maskStride + columnSquare + threadIdx.x] = high << 32 | shared.hit[threadIdx.x][0];
    }
}

//! Walk down the round's candidates, 64 at a time, best first. \return the image's detections so far, at most K.
__device__ inline uint32_t blockWalk(NmsArguments const& args, int64_t image, uint32_t count, uint32_t before)
{
    auto& shared = dynamicShared<MaskShared>();
    Word const* const mask = args.mask + image * args.maskRows * args.maskStride;
    uint32_t kept = before;
    uint32_t const squares = count == 0 ? 0 : squaresAcross(count);
    for (uint32_t s = 0; s < squares && kept < args.maxDetections; ++s)
    {
        Word* const square = shared.square[s % 2];
        uint32_t* const gone = shared.gone[s % 2];
        uint32_t const row = s * kWORD + threadIdx.x;
        if (threadIdx.x < kWORD)
        {
            square[threadIdx.x] = row < count ? mask[static_cast<int64_t>(row) * args.maskStride + s] : 0;
        }
        if (threadIdx.x == 0)
        {
            Word const earlier = args.start == 0 ? 0 : args.suppressed[image * args.maskStride + s];
            gone[0] = static_cast<uint32_t>(earlier);
            gone[1] = static_cast<uint32_t>(earlier >> 32);
        }
        __syncthreads();
        for (uint32_t k = threadIdx.x; k < kept - before; k += kMASK_THREADS)
        {
            Word const word = mask[static_cast<int64_t>(shared.walked[k]) * args.maskStride + s];
            if (static_cast<uint32_t>(word) != 0)
            {
                atomicOr(&gone[0], static_cast<uint32_t>(word));
            }
            if ((word >> 32) != 0)
            {
                atomicOr(&gone[1], static_cast<uint32_t>(word >> 32));
            }
        }
        __syncthreads();
        // Every thread takes the same steps, so that no barrier is needed to tell the others how many there are.
        uint32_t const left = count - s * kWORD;
        Word const all = left >= kWORD ? ~static_cast<Word>(0) : (static_cast<Word>(1) << left) - 1;
        Word alive = all & ~(static_cast<Word>(gone[1]) << 32 | gone[0]);
        while (alive != 0 && kept < args.maxDetections)
        {
            uint32_t const next = static_cast<uint32_t>(__ffsll(static_cast<long long>(alive))) - 1;
            alive &= ~(square[next] | static_cast<Word>(1) << next);
            if (threadIdx.x == 0)
            {
                shared.walked[kept - before] = s * kWORD + next;
            }
            ++kept;
        }
    }
    __syncthreads();
    return kept;
}

//! Write an image's detections in pixels of its original, and zeros behind them.
__device__ inline void blockDetections(NmsArguments const& args, int64_t image, uint32_t kept)
{
    float4 const letterbox = args.letterbox[image]; // original h, w, resized h, w
    float const scaleX = __fdiv_rn(letterbox.y, letterbox.w);
    float const scaleY = __fdiv_rn(letterbox.x, letterbox.z);
    for (uint32_t k = threadIdx.x; k < args.maxDetections; k += kMASK_THREADS)
    {
        float4 box = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
        float score = 0.0F;
        int32_t label = 0;
        if (k < kept)
        {
            int64_t const from = image * args.candidates + args.kept[image * args.maxDetections + k];
            float4 const inside = args.sortedBoxes[from];
            box = make_float4(fminf(__fmul_rn(inside.x, scaleX), letterbox.y),
                fminf(__fmul_rn(inside.y, scaleY), letterbox.x), fminf(__fmul_rn(inside.z, scaleX), letterbox.y),
                fminf(__fmul_rn(inside.w, scaleY), letterbox.x));
            score = __fdiv_rn(1.0F, __fadd_rn(1.0F, expf(-args.sortedLogits[from])));
            label = args.sortedClasses[from];
        }
        args.outBoxes[image * args.maxDetections + k] = box;
        args.outScores[image * args.maxDetections + k] = score;
        args.outClasses[image * args.maxDetections + k] = label;
    }
    if (threadIdx.x == 0)
    {
        args.numDetections[image] = static_cast<int32_t>(kept);
    }
}

//! One round; grid: columns of squares / kMASK_WORDS, rows of squares (and one for the earlier detections), images.
__global__ void __launch_bounds__(kMASK_THREADS) suppressKernel(RETINASERVE_ARGUMENTS NmsArguments args)
{
    auto& shared = dynamicShared<MaskShared>();
    int64_t const image = blockIdx.z;
    ImageState& state = args.images[image];
    bool const isFirst = args.start == 0;
    uint32_t const count = min(state.valid - args.start, args.count);
    uint32_t const squares = squaresAcross(count);
    uint32_t const column = blockIdx.x * kMASK_WORDS;
    bool const isEarlier = !isFirst && blockIdx.y + 1 == gridDim.y;
    bool const isBusy = isEarlier || (blockIdx.y < squares && blockIdx.y < column + kMASK_WORDS);
    // Only blocks that the last one waits for may ask whether the image is finished: others could meet the answer that
    // this round writes.
    if (column >= squares || !isBusy || state.finished != 0)
    {
        return;
    }
    uint32_t const mine = column * kWORD + threadIdx.x;
    if (mine < count)
    {
        int64_t const from = image * args.candidates + args.start + mine;
        shared.boxes[threadIdx.x] = args.sortedBoxes[from];
        shared.classes[threadIdx.x] = args.sortedClasses[from];
    }
    if (threadIdx.x < 2 * kMASK_WORDS)
    {
        shared.hit[threadIdx.x / 2][threadIdx.x % 2] = 0;
    }
    __syncthreads();
    if (isEarlier)
    {
        blockSuppress(args, image, count, column);
    }
    else
    {
        blockMask(args, image, count, blockIdx.y, column);
    }
    __syncthreads();
    if (threadIdx.x == 0)
    {
        shared.isLast = isLastToFinish(&state.done, busyBlocks(count, isFirst)) ? 1 : 0;
    }
    __syncthreads();
    if (shared.isLast == 0)
    {
        return;
    }
    uint32_t const before = state.kept;
    uint32_t const kept = blockWalk(args, image, count, before);
    for (uint32_t k = before + threadIdx.x; k < kept; k += kMASK_THREADS)
    {
        args.kept[image * args.maxDetections + k] = args.start + shared.walked[k - before];
    }
    __syncthreads();
    bool const isFinished = kept == args.maxDetections || args.start + count >= state.valid;
    if (isFinished)
    {
        blockDetections(args, image, kept);
    }
    if (threadIdx.x == 0)
    {
        state.kept = kept;
        atomicExch(&state.done, 0U);
        state.finished = isFinished ? 1 : 0;
    }
}

} // namespace retinaserve
