// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file decode.cu
//! \brief How a decode is cut into blocks, and its launch.

#include "decode.cuh"

#include "retinaserve/decode.h"

#include <algorithm>
#include <cmath>

namespace retinaserve
{
namespace
{

//! Blocks a launch aims at: a few waves of the largest GPUs. Scratch grows with it, not with the maps.
constexpr int64_t kTARGET_BLOCKS = 1024;
//! Blocks a segment, at most: one block gathers what they leave.
constexpr int64_t kSEGMENT_BLOCKS = 256;
constexpr int64_t kALIGNMENT = 256;

int64_t divideUp(int64_t value, int64_t by)
{
    return (value + by - 1) / by;
}

int64_t channelsOf(DecodeProblem const& problem)
{
    return static_cast<int64_t>(problem.anchorsPerCell) * problem.classes;
}

int64_t levelCells(DecodeProblem const& problem, int32_t level)
{
    return static_cast<int64_t>(problem.heights[level]) * problem.widths[level];
}

//! Logits to read: where channels are last, those that mean nothing stand among the others.
int64_t levelSize(DecodeProblem const& problem, int32_t level)
{
    int64_t const channels = problem.channelsLast != 0 ? problem.logitChannels : channelsOf(problem);
    return channels * levelCells(problem, level);
}

int64_t levelSlots(DecodeProblem const& problem, int32_t level)
{
    return std::min<int64_t>(problem.topK, channelsOf(problem) * levelCells(problem, level));
}

//! Rounds that a segment takes, wherever in a 16-byte unit it begins.
int64_t levelRounds(DecodeProblem const& problem, int32_t level)
{
    int64_t const lanes = problem.halfPrecision != 0 ? 8 : 4;
    return divideUp(levelSize(problem, level) + lanes - 1, kDECODE_ROUND);
}

//! Levels a launch: all there are, as a rule; their anchors travel as arguments.
int32_t levelsAtOnce(DecodeProblem const& problem)
{
    int32_t const fit = static_cast<int32_t>(kDECODE_ANCHORS) / problem.anchorsPerCell;
    return std::min(static_cast<int32_t>(kDECODE_LEVELS), fit);
}

int64_t totalRounds(DecodeProblem const& problem, int32_t first, int32_t last)
{
    int64_t rounds = 0;
    for (int32_t level = first; level < last; ++level)
    {
        rounds += problem.batch * levelRounds(problem, level);
    }
    return rounds;
}

//! Room in shared memory: what the sort needs, and at least as much again for what arrives, where it fits 48 KB.
uint32_t bufferCapacity(int32_t topK)
{
    uint32_t size = 1024;
    while (size < static_cast<uint32_t>(topK))
    {
        size *= 2;
    }
    return size <= 2048 ? 2 * size : size + 512;
}
static_assert(DecodeShared::bytes(kMAX_TOPK + 512) <= 48 * 1024, "no opt-in for more shared memory is needed");
static_assert(kDECODE_ANCHORS == kMAX_ANCHORS, "one level's anchors fit a launch");
static_assert(sizeof(DecodeArguments) <= 4096, "kernel arguments have 4 KB");

size_t segmentBytes(DecodeProblem const& problem)
{
    int64_t const segments = static_cast<int64_t>(problem.levels) * problem.batch;
    return static_cast<size_t>(divideUp(segments * static_cast<int64_t>(sizeof(Segment)), kALIGNMENT) * kALIGNMENT);
}

//! At most so many blocks in a launch. It only grows with a problem's batch, heights and widths.
int64_t launchBlocks(DecodeProblem const& problem, int32_t first, int32_t last)
{
    int64_t const segments = static_cast<int64_t>(last - first) * problem.batch;
    return std::min(kTARGET_BLOCKS + segments, totalRounds(problem, first, last));
}

template <typename T>
int32_t launchLevels(DecodeProblem const& problem, int32_t first, int32_t last, DecodeArguments& args,
    void const* const* logits, void const* const* deltas, cudaStream_t stream)
{
    int64_t const atLeast = std::max<int64_t>(1, divideUp(totalRounds(problem, first, last), kTARGET_BLOCKS));
    int64_t blocks = 0;
    args.levels = static_cast<uint32_t>(last - first);
    for (int32_t l = first; l < last; ++l)
    {
        LevelArguments& level = args.level[l - first];
        int64_t const all = levelRounds(problem, l);
        int64_t const rounds = std::max(atLeast, divideUp(all, kSEGMENT_BLOCKS));
        level.logits = logits[l];
        level.deltas = deltas[l];
        level.size = static_cast<uint32_t>(levelSize(problem, l));
        level.cells = static_cast<uint32_t>(levelCells(problem, l));
        level.width = static_cast<uint32_t>(problem.widths[l]);
        level.stride = static_cast<uint32_t>(problem.strides[l]);
        level.rounds = static_cast<uint32_t>(rounds);
        level.blocks = static_cast<uint32_t>(divideUp(all, rounds));
        level.firstBlock = static_cast<uint32_t>(blocks);
        level.slots = static_cast<uint32_t>(levelSlots(problem, l));
        level.firstAnchor = static_cast<uint32_t>((l - first) * problem.anchorsPerCell);
        blocks += static_cast<int64_t>(level.blocks) * problem.batch;
        for (int32_t a = 0; a < problem.anchorsPerCell; ++a)
        {
            float const* const box = problem.anchors + (static_cast<int64_t>(l) * problem.anchorsPerCell + a) * 4;
            args.anchors[level.firstAnchor + a] = make_float4(box[0], box[1], box[2], box[3]);
        }
    }
    return launch(decodeKernel<T>, dim3(static_cast<uint32_t>(blocks)), dim3(kDECODE_THREADS),
        DecodeShared::bytes(args.capacity), stream, args);
}

} // namespace

char const* decodeFault(DecodeProblem const& problem) noexcept
{
    if (problem.levels < 1 || problem.batch < 0 || problem.classes < 1)
    {
        return "levels and classes must be 1 or more, batch 0 or more";
    }
    if (problem.anchorsPerCell < 1 || problem.anchorsPerCell > kMAX_ANCHORS)
    {
        return "anchors a cell must be 1 to 128";
    }
    if (problem.topK < 1 || problem.topK > kMAX_TOPK)
    {
        return "topk must be 1 to 4096";
    }
    if (!std::isfinite(problem.thresholdLogit) || std::isnan(problem.deltaClamp))
    {
        return "threshold_logit must be finite and delta_clamp a number";
    }
    if (problem.logitChannels < channelsOf(problem) || problem.deltaChannels < 4 * problem.anchorsPerCell)
    {
        return "there are fewer channels than anchors a cell and classes ask for";
    }
    for (int32_t level = 0; level < problem.levels; ++level)
    {
        if (problem.heights[level] < 1 || problem.widths[level] < 1 || problem.strides[level] < 1)
        {
            return "every level must have a height, a width and a stride of 1 or more";
        }
        if (problem.logitChannels * levelCells(problem, level) > kMAX_LOGITS)
        {
            return "a level of an image has more than 2^32 - 2 logits";
        }
    }
    return nullptr;
}

int64_t decodeSlots(DecodeProblem const& problem) noexcept
{
    int64_t slots = 0;
    for (int32_t level = 0; level < problem.levels; ++level)
    {
        slots += levelSlots(problem, level);
    }
    return slots;
}

size_t decodeScratchBytes(DecodeProblem const& problem) noexcept
{
    int64_t blocks = 0;
    for (int32_t first = 0; first < problem.levels; first += levelsAtOnce(problem))
    {
        int32_t const last = std::min(first + levelsAtOnce(problem), problem.levels);
        blocks = std::max(blocks, launchBlocks(problem, first, last));
    }
    return segmentBytes(problem) + static_cast<size_t>(blocks) * problem.topK * sizeof(Key);
}

void* allocateKept() noexcept
{
    return allocateZeros(kKEPT_BYTES);
}

void releaseKept(void* kept) noexcept
{
    release(kept);
}

int32_t decode(DecodeProblem const& problem, void const* const* logits, void const* const* deltas,
    float const* letterbox, float* outLogits, float* outBoxes, int32_t* outClasses, void* scratch, void* kept,
    CUstream_st* stream) noexcept
{
    if (decodeFault(problem) != nullptr)
    {
        return static_cast<int32_t>(cudaErrorInvalidValue);
    }
    if (problem.batch == 0)
    {
        return 0;
    }
    DecodeArguments args{};
    args.batch = static_cast<uint32_t>(problem.batch);
    args.classes = static_cast<uint32_t>(problem.classes);
    args.channels = static_cast<uint32_t>(channelsOf(problem));
    args.logitChannels = static_cast<uint32_t>(problem.logitChannels);
    args.deltaChannels = static_cast<uint32_t>(problem.deltaChannels);
    args.channelsLast = static_cast<uint32_t>(problem.channelsLast);
    args.topK = static_cast<uint32_t>(problem.topK);
    args.capacity = bufferCapacity(problem.topK);
    args.slots = static_cast<uint32_t>(decodeSlots(problem));
    args.thresholdLogit = problem.thresholdLogit;
    args.deltaClamp = problem.deltaClamp;
    args.letterbox = reinterpret_cast<float4 const*>(letterbox);
    args.outLogits = outLogits;
    args.outBoxes = reinterpret_cast<float4*>(outBoxes);
    args.outClasses = outClasses;
    args.lists = reinterpret_cast<Key*>(static_cast<char*>(scratch) + segmentBytes(problem));

    bool const isKept = kept != nullptr && segmentBytes(problem) <= kKEPT_BYTES;
    int32_t const cleared = isKept ? 0 : clear(scratch, segmentBytes(problem), stream);
    if (cleared != 0)
    {
        return cleared;
    }
    uint32_t slot = 0;
    for (int32_t first = 0; first < problem.levels; first += levelsAtOnce(problem))
    {
        int32_t const last = std::min(first + levelsAtOnce(problem), problem.levels);
        args.segments = static_cast<Segment*>(isKept ? kept : scratch) + static_cast<int64_t>(first) * problem.batch;
        for (int32_t l = first; l < last; ++l)
        {
            args.level[l - first].firstSlot = slot;
            slot += static_cast<uint32_t>(levelSlots(problem, l));
        }
        int32_t const error = problem.halfPrecision != 0
            ? launchLevels<__half>(problem, first, last, args, logits, deltas, stream)
            : launchLevels<float>(problem, first, last, args, logits, deltas, stream);
        if (error != 0)
        {
            return error;
        }
    }
    return 0;
}

} // namespace retinaserve
