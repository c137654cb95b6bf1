// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file nms.cuh
//! \brief Bring the candidates of an image into order, then keep those that no better one suppresses.
//!
//! Nothing is sorted: candidates come in runs, a level each, that are best first already. A candidate's rank is its
//! place in its own run and, by binary search, how many of every other run are better. Then one block an image walks
//! down the ranks, a chunk at a time: who overlaps a detection that there is already is out; a bit mask says which of
//! the others overlap; whoever is left after the better ones is a detection. No block waits for another.

#pragma once

#include "primitives.cuh"

namespace retinaserve
{

constexpr uint32_t kRANK_THREADS = 512;
constexpr uint32_t kRANK_LOGITS = 8192; //!< logits of an image in shared memory; of more, they stay in global memory
constexpr uint32_t kRUNS = 32;          //!< runs that are searched; candidates in more are compared one by one
constexpr uint32_t kCHUNK = 128;        //!< candidates that are walked down at a time
constexpr uint32_t kWORDS = kCHUNK / 32;
constexpr uint32_t kKEEP_THREADS = kCHUNK * kWORDS; //!< a word of the mask a thread
static_assert(kWORDS == 4, "a row of the mask is a uint4");

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
    uint32_t* valid;        //!< candidates that are no empty slots
    float4* sortedBoxes;    //!< [N]: best first, like the next two
    float* sortedLogits;    //!< [N]
    int32_t* sortedClasses; //!< [N]
    float4* keptBoxes;      //!< [K]: detections, in letterboxed pixels
};

struct RankShared
{
    uint32_t valid;
    uint32_t runs;
    uint32_t found[kRUNS];      //!< where runs begin
    uint32_t starts[kRUNS + 1]; //!< the same in order, and the end
    float logits[kRANK_LOGITS];

    static constexpr size_t bytes(uint32_t candidates)
    {
        return offsetof(RankShared, logits) + (candidates < kRANK_LOGITS ? candidates : kRANK_LOGITS) * sizeof(float);
    }
};

struct KeepShared
{
    float4 boxes[kCHUNK]; //!< of those that no detection of before overlaps
    int32_t classes[kCHUNK];
    uint4 mask[kCHUNK];   //!< bit c: this one suppresses the worse one c
    uint32_t out[kWORDS]; //!< bit c: candidate c of the chunk is out
};

//! \return a logit with -infinity for whatever is no number: an empty slot.
__device__ inline float logitAt(float const* logits, uint32_t i)
{
    float const logit = logits[i];
    return logit > -INFINITY ? logit : -INFINITY;
}

//! \return how many of a run's logits, best first, are better than a candidate's. Of equal ones, the earlier is better.
__device__ inline uint32_t countBetter(float const* logits, uint32_t begin, uint32_t end, float logit, bool isBefore)
{
    uint32_t low = begin;
    uint32_t high = end;
    while (low < high)
    {
        uint32_t const middle = (low + high) / 2;
        float const other = logitAt(logits, middle);
        bool const isBetter = isBefore ? other >= logit : other > logit;
        low = isBetter ? middle + 1 : low;
        high = isBetter ? high : middle;
    }
    return low - begin;
}

//! \return a candidate's rank among all of its image.
__device__ inline uint32_t rankOf(RankShared const& shared, float const* logits, uint32_t count, uint32_t mine)
{
    float const logit = logitAt(logits, mine);
    uint32_t rank = 0;
    if (shared.runs > kRUNS)
    {
        for (uint32_t i = 0; i < count; ++i)
        {
            float const other = logitAt(logits, i);
            rank += other > logit || (other == logit && i < mine) ? 1 : 0;
        }
        return rank;
    }
    for (uint32_t run = 0; run < shared.runs; ++run)
    {
        uint32_t const begin = shared.starts[run];
        uint32_t const end = shared.starts[run + 1];
        bool const isOwn = begin <= mine && mine < end;
        rank += isOwn ? mine - begin : countBetter(logits, begin, end, logit, end <= mine);
    }
    return rank;
}

//! Find where runs begin, and how many candidates are no empty slots.
__device__ inline void blockRuns(RankShared& shared, float const* logits, uint32_t count)
{
    if (threadIdx.x == 0)
    {
        shared.valid = 0;
        shared.runs = 0;
    }
    __syncthreads(); // the logits are there, too
    uint32_t valid = 0;
    for (uint32_t i = threadIdx.x; i < count; i += kRANK_THREADS)
    {
        float const logit = logitAt(logits, i);
        valid += logit > -INFINITY ? 1 : 0;
        if (i == 0 || logitAt(logits, i - 1) < logit)
        {
            uint32_t const place = atomicAdd(&shared.runs, 1U);
            if (place < kRUNS)
            {
                shared.found[place] = i;
            }
        }
    }
    atomicAdd(&shared.valid, valid);
    __syncthreads();
    uint32_t const runs = min(shared.runs, kRUNS);
    if (threadIdx.x < runs)
    {
        uint32_t const start = shared.found[threadIdx.x];
        uint32_t before = 0;
        for (uint32_t run = 0; run < runs; ++run)
        {
            before += shared.found[run] < start ? 1 : 0;
        }
        shared.starts[before] = start;
    }
    if (threadIdx.x == 0)
    {
        shared.starts[runs] = count;
    }
    __syncthreads();
}

//! Bring every candidate to its rank; grid: N / threads, images.
__global__ void __launch_bounds__(kRANK_THREADS) rankKernel(RETINASERVE_ARGUMENTS NmsArguments args)
{
    auto& shared = dynamicShared<RankShared>();
    int64_t const image = blockIdx.y;
    int64_t const row = image * args.candidates;
    uint32_t const count = args.candidates;
    uint32_t const mine = blockIdx.x * kRANK_THREADS + threadIdx.x;
    float const* const logits = args.logits + row;
    bool const isMine = mine < count && logits[mine] > -INFINITY;
    float4 const box = isMine ? args.boxes[row + mine] : make_float4(0.0F, 0.0F, 0.0F, 0.0F);
    int32_t const label = isMine ? args.classes[row + mine] : 0;

    bool const fits = count <= kRANK_LOGITS;
    if (fits)
    {
#pragma unroll 8
        for (uint32_t i = threadIdx.x; i < count; i += kRANK_THREADS)
        {
            shared.logits[i] = logits[i];
        }
    }
    blockRuns(shared, fits ? shared.logits : logits, count);
    if (mine == 0)
    {
        args.valid[image] = shared.valid;
    }
    if (isMine)
    {
        int64_t const to
            = row + (fits ? rankOf(shared, shared.logits, count, mine) : rankOf(shared, logits, count, mine));
        args.sortedBoxes[to] = box;
        args.sortedLogits[to] = logits[mine];
        args.sortedClasses[to] = label;
    }
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

//! A candidate, or none.
struct Candidate
{
    float4 box;
    float logit;
    int32_t label;
    bool isThere;
};

__device__ inline Candidate loadCandidate(NmsArguments const& args, int64_t image, uint32_t rank, uint32_t valid)
{
    Candidate found{make_float4(0.0F, 0.0F, 0.0F, 0.0F), 0.0F, 0, rank < valid};
    if (found.isThere)
    {
        int64_t const from = image * args.candidates + rank;
        found = {args.sortedBoxes[from], args.sortedLogits[from], args.sortedClasses[from], true};
    }
    return found;
}

//! \return whether one of every kWORDS detections, from this thread's first one on, suppresses a candidate.
__device__ inline bool isSuppressed(NmsArguments const& args, int64_t image, uint32_t kept, Candidate const& candidate)
{
    float4 const* const boxes = args.keptBoxes + image * args.maxDetections;
    int32_t const* const classes = args.outClasses + image * args.maxDetections;
    constexpr uint32_t kAT_ONCE = 4; // so many loads are under way
    bool hit = false;
    for (uint32_t first = threadIdx.x / kCHUNK; first < kept && !hit; first += kAT_ONCE * kWORDS)
    {
        float4 box[kAT_ONCE];
        int32_t label[kAT_ONCE];
#pragma unroll
        for (uint32_t i = 0; i < kAT_ONCE; ++i)
        {
            uint32_t const k = min(first + i * kWORDS, kept - 1);
            box[i] = boxes[k];
            label[i] = classes[k];
        }
#pragma unroll
        for (uint32_t i = 0; i < kAT_ONCE; ++i)
        {
            hit = hit || (label[i] == candidate.label && overlaps(box[i], candidate.box, args.iou));
        }
    }
    return hit;
}

//! Fill the mask of `count` candidates, the best first: a word a thread.
__device__ inline void blockMask(KeepShared& shared, uint32_t count, float iou)
{
    uint32_t const row = threadIdx.x % kCHUNK;
    uint32_t const word = threadIdx.x / kCHUNK;
    if (row >= count)
    {
        return;
    }
    float4 const box = shared.boxes[row];
    int32_t const label = shared.classes[row];
    uint32_t bits = 0;
    for (uint32_t column = max(row + 1, word * 32); column < min(count, word * 32 + 32); ++column)
    {
        bool const hit = shared.classes[column] == label && overlaps(box, shared.boxes[column], iou);
        bits |= hit ? 1U << (column % 32) : 0;
    }
    reinterpret_cast<uint32_t*>(&shared.mask[row])[word] = bits;
}

//! A bit for each of a chunk's candidates.
struct Bits
{
    uint32_t word[kWORDS];

    __device__ uint32_t count() const
    {
        return countBelow(kCHUNK);
    }

    __device__ uint32_t countBelow(uint32_t place) const
    {
        uint32_t found = 0;
#pragma unroll
        for (uint32_t w = 0; w < kWORDS; ++w)
        {
            uint32_t const below = place >= 32 * w + 32 ? ~0U : place <= 32 * w ? 0 : (1U << (place - 32 * w)) - 1;
            found += static_cast<uint32_t>(__popc(word[w] & below));
        }
        return found;
    }

    __device__ bool has(uint32_t place) const
    {
        return countBelow(place + 1) != countBelow(place);
    }
};

//! \return which of `count` candidates, the best first, no better one that is left suppresses; `most` of them at most.
//! Every thread takes the same steps, so that no barrier is needed to tell the others.
__device__ inline Bits walk(KeepShared const& shared, uint32_t count, uint32_t most)
{
    Bits left{};
    Bits kept{};
#pragma unroll
    for (uint32_t w = 0; w < kWORDS; ++w)
    {
        left.word[w] = count >= 32 * w + 32 ? ~0U : count <= 32 * w ? 0 : (1U << (count - 32 * w)) - 1;
    }
    uint32_t taken = 0;
#pragma unroll
    for (uint32_t w = 0; w < kWORDS; ++w)
    {
        while (left.word[w] != 0 && taken < most)
        {
            uint32_t const bit = static_cast<uint32_t>(__ffs(static_cast<int>(left.word[w]))) - 1;
            uint4 const row = shared.mask[w * 32 + bit];
            kept.word[w] |= 1U << bit;
            left.word[w] &= ~(1U << bit);
            left.word[0] &= ~row.x;
            left.word[1] &= ~row.y;
            left.word[2] &= ~row.z;
            left.word[3] &= ~row.w;
            ++taken;
        }
    }
    return kept;
}

//! Write an image's k-th detection in pixels of its original.
__device__ inline void writeDetection(
    NmsArguments const& args, int64_t image, uint32_t k, float4 letterbox, Candidate const& candidate)
{
    float const scaleX = __fdiv_rn(letterbox.y, letterbox.w);
    float const scaleY = __fdiv_rn(letterbox.x, letterbox.z);
    float4 const box = candidate.box;
    int64_t const to = image * args.maxDetections + k;
    args.keptBoxes[to] = box;
    args.outBoxes[to]
        = make_float4(fminf(__fmul_rn(box.x, scaleX), letterbox.y), fminf(__fmul_rn(box.y, scaleY), letterbox.x),
            fminf(__fmul_rn(box.z, scaleX), letterbox.y), fminf(__fmul_rn(box.w, scaleY), letterbox.x));
    args.outScores[to] = __fdiv_rn(1.0F, __fadd_rn(1.0F, expf(-candidate.logit)));
    args.outClasses[to] = candidate.label;
}

//! Walk down an image's candidates and write its detections, and zeros behind them; grid: images.
__global__ void __launch_bounds__(kKEEP_THREADS) keepKernel(RETINASERVE_ARGUMENTS NmsArguments args)
{
    auto& shared = dynamicShared<KeepShared>();
    int64_t const image = blockIdx.x;
    uint32_t const place = threadIdx.x % kCHUNK;    // a candidate is looked at by kWORDS threads
    float4 const letterbox = args.letterbox[image]; // original h, w, resized h, w
    uint32_t const valid = args.candidates == 0 ? 0 : args.valid[image];
    if (threadIdx.x < kWORDS)
    {
        shared.out[threadIdx.x] = 0;
    }
    __syncthreads();
    Candidate next = loadCandidate(args, image, place, valid);
    uint32_t kept = 0;
    for (uint32_t start = 0; start < valid && kept < args.maxDetections; start += kCHUNK)
    {
        Candidate const mine = next;
        next = loadCandidate(args, image, start + kCHUNK + place, valid); // under way while this chunk is walked down
        if (!mine.isThere || isSuppressed(args, image, kept, mine))
        {
            atomicOr(&shared.out[place / 32], 1U << (place % 32));
        }
        __syncthreads();
        Bits left{};
#pragma unroll
        for (uint32_t w = 0; w < kWORDS; ++w)
        {
            left.word[w] = ~shared.out[w];
        }
        uint32_t const count = left.count();
        uint32_t const among = left.countBelow(place);
        bool const isLeft = threadIdx.x < kCHUNK && left.has(place);
        if (isLeft)
        {
            shared.boxes[among] = mine.box;
            shared.classes[among] = mine.label;
        }
        __syncthreads();
        if (threadIdx.x < kWORDS)
        {
            shared.out[threadIdx.x] = 0; // all have read it
        }
        blockMask(shared, count, args.iou);
        __syncthreads();
        Bits const found = walk(shared, count, args.maxDetections - kept);
        if (isLeft && found.has(among))
        {
            writeDetection(args, image, kept + found.countBelow(among), letterbox, mine);
        }
        kept += found.count();
        __syncthreads(); // the next chunk sees these detections
    }
    for (uint32_t k = kept + threadIdx.x; k < args.maxDetections; k += kKEEP_THREADS)
    {
        args.outBoxes[image * args.maxDetections + k] = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
        args.outScores[image * args.maxDetections + k] = 0.0F;
        args.outClasses[image * args.maxDetections + k] = 0;
    }
    if (threadIdx.x == 0)
    {
        args.numDetections[image] = static_cast<int32_t>(kept);
    }
}

} // namespace retinaserve
