// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file nms.cu
//! \brief An NMS' scratch and its launches.

#include "nms.cuh"

#include "retinaserve/nms.h"

#include <type_traits>

namespace retinaserve
{
namespace
{

constexpr size_t kALIGNMENT = 256;

static_assert(sizeof(RankShared) <= 48 * 1024, "no opt-in for more shared memory is needed");
static_assert(sizeof(NmsArguments) <= 4096, "kernel arguments have 4 KB");

//! Lay the scratch arrays out one after another; without memory only count them. \return their bytes.
size_t placeScratch(NmsProblem const& problem, void* memory, NmsArguments& args)
{
    size_t bytes = 0;
    auto const place = [&](auto*& array, int64_t count)
    {
        array = memory == nullptr ? nullptr
                                  : reinterpret_cast<std::decay_t<decltype(array)>>(static_cast<char*>(memory) + bytes);
        bytes += (static_cast<size_t>(count) * sizeof(*array) + kALIGNMENT - 1) / kALIGNMENT * kALIGNMENT;
    };
    int64_t const batch = problem.batch;
    int64_t const count = problem.candidates;
    place(args.valid, batch);
    place(args.sortedBoxes, batch * count);
    place(args.sortedLogits, batch * count);
    place(args.sortedClasses, batch * count);
    place(args.keptBoxes, batch * problem.maxDetections);
    return bytes;
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
    if (problem.candidates > 0)
    {
        dim3 const candidates((args.candidates + kRANK_THREADS - 1) / kRANK_THREADS, batch);
        int32_t const error
            = launch(rankKernel, candidates, dim3(kRANK_THREADS), RankShared::bytes(args.candidates), stream, args);
        if (error != 0)
        {
            return error;
        }
    }
    return launch(keepKernel, dim3(batch), dim3(kKEEP_THREADS), sizeof(KeepShared), stream, args);
}

} // namespace retinaserve
