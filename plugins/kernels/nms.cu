// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file nms.cu
//! \brief How an NMS is cut into rounds, its scratch, and its launches.

#include "nms.cuh"

#include "retinaserve/nms.h"

#include <algorithm>
#include <cmath>

namespace retinaserve
{
namespace
{

//! Candidates of the first round: it holds K detections, as a rule, and costs half the square of its size.
constexpr int64_t kFIRST_ROUND = 1024;
constexpr size_t kALIGNMENT = 256;

static_assert(MaskShared::bytes(kMAX_DETECTIONS) <= 48 * 1024, "no opt-in for more shared memory is needed");
static_assert(sizeof(NmsArguments) <= 4096, "kernel arguments have 4 KB");

int64_t divideUp(int64_t value, int64_t by)
{
    return (value + by - 1) / by;
}

//! Lays arrays out one after another; without memory it only counts their bytes.
class Layout
{
public:
    explicit Layout(void* memory)
        : mMemory(static_cast<char*>(memory))
    {
    }

    template <typename T>
    void place(T*& array, int64_t count)
    {
        array = mMemory == nullptr ? nullptr : reinterpret_cast<T*>(mMemory + mBytes);
        mBytes += (static_cast<size_t>(count) * sizeof(T) + kALIGNMENT - 1) / kALIGNMENT * kALIGNMENT;
    }

    size_t bytes() const
    {
        return mBytes;
    }

private:
    char* mMemory;
    size_t mBytes{0};
};

size_t placeScratch(NmsProblem const& problem, void* memory, NmsArguments& args)
{
    int64_t const batch = problem.batch;
    int64_t const count = problem.candidates;
    int64_t const tiles = divideUp(count, kSORT_TILE);
    int64_t const words = divideUp(std::min<int64_t>(count, kROUND_CANDIDATES), kWORD);
    Layout layout(memory);
    layout.place(args.images, batch);
    layout.place(args.tileCounts, batch * tiles);
    layout.place(args.tileKeys, batch * count);
    layout.place(args.sortedBoxes, batch * count);
    layout.place(args.sortedLogits, batch * count);
    layout.place(args.sortedClasses, batch * count);
    layout.place(args.kept, batch * problem.maxDetections);
    layout.place(args.suppressed, batch * words);
    layout.place(args.mask, batch * words * kWORD * words);
    args.tiles = static_cast<uint32_t>(tiles);
    args.maskRows = static_cast<uint32_t>(words * kWORD);
    args.maskStride = static_cast<uint32_t>(words);
    return layout.bytes();
}

//! No candidates, no detections.
int32_t clearOutputs(NmsProblem const& problem, NmsArguments const& args, cudaStream_t stream)
{
    size_t const images = static_cast<size_t>(problem.batch);
    size_t const slots = images * static_cast<size_t>(problem.maxDetections);
    int32_t error = clear(args.numDetections, images * sizeof(int32_t), stream);
    error = error != 0 ? error : clear(args.outBoxes, slots * sizeof(float4), stream);
    error = error != 0 ? error : clear(args.outScores, slots * sizeof(float), stream);
    return error != 0 ? error : clear(args.outClasses, slots * sizeof(int32_t), stream);
}

} // namespace

char const* nmsFault(NmsProblem const& problem) noexcept
{
    if (problem.batch < 0 || problem.batch > 65535)
    {
        return "batch must be 0 to 65535";
    }
    if (problem.candidates < 0 || problem.candidates > kMAX_CANDIDATES)
    {
        return "candidates must be 0 to 1048576";
    }
    if (problem.maxDetections < 1 || problem.maxDetections > kMAX_DETECTIONS)
    {
        return "max_detections must be 1 to 4096";
    }
    if (!(problem.iou >= 0.0F && problem.iou <= 1.0F))
    {
        return "iou must be 0 to 1";
    }
    return nullptr;
}

size_t nmsScratchBytes(NmsProblem const& problem) noexcept
{
    NmsArguments args{};
    return placeScratch(problem, nullptr, args);
}

int32_t nms(NmsProblem const& problem, float const* logits, float const* boxes, int32_t const* classes,
    float const* letterbox, int32_t* numDetections, float* outBoxes, float* outScores, int32_t* outClasses,
    void* scratch, CUstream_st* stream) noexcept
{
    if (nmsFault(problem) != nullptr)
    {
        return static_cast<int32_t>(cudaErrorInvalidValue);
    }
    if (problem.batch == 0)
    {
        return 0;
    }
    NmsArguments args{};
    args.candidates = static_cast<uint32_t>(problem.candidates);
    args.maxDetections = static_cast<uint32_t>(problem.maxDetections);
    args.iou = problem.iou;
    args.logits = logits;
    args.boxes = reinterpret_cast<float4 const*>(boxes);
    args.classes = classes;
    args.letterbox = reinterpret_cast<float4 const*>(letterbox);
    args.numDetections = numDetections;
    args.outBoxes = reinterpret_cast<float4*>(outBoxes);
    args.outScores = outScores;
    args.outClasses = outClasses;
    placeScratch(problem, scratch, args);

    uint32_t const batch = static_cast<uint32_t>(problem.batch);
    if (problem.candidates == 0)
    {
        return clearOutputs(problem, args, stream);
    }
    dim3 const tiles(args.tiles, batch);
    if (int32_t const error = launch(sortKernel, tiles, dim3(kSORT_THREADS), sizeof(SortShared), stream, args))
    {
        return error;
    }
    dim3 const candidates(static_cast<uint32_t>(divideUp(problem.candidates, kRANK_THREADS)), batch);
    if (int32_t const error = launch(rankKernel, candidates, dim3(kRANK_THREADS), 0, stream, args))
    {
        return error;
    }
    int64_t const last = problem.candidates;
    for (int64_t start = 0; start < last; start += args.count)
    {
        int64_t const most = start == 0 ? kFIRST_ROUND : static_cast<int64_t>(kROUND_CANDIDATES);
        args.start = static_cast<uint32_t>(start);
        args.count = static_cast<uint32_t>(std::min(last - start, most));
        uint32_t const squares = static_cast<uint32_t>(divideUp(args.count, kWORD));
        dim3 const grid(static_cast<uint32_t>(divideUp(squares, kMASK_WORDS)), squares + (start == 0 ? 0 : 1), batch);
        int32_t const error
            = launch(suppressKernel, grid, dim3(kMASK_THREADS), MaskShared::bytes(args.maxDetections), stream, args);
        if (error != 0)
        {
            return error;
        }
    }
    return 0;
}

} // namespace retinaserve
