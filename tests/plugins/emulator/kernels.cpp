// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file kernels.cpp
//! \brief The kernels behind plain C functions, for native.py: no TensorRT, no C++ types.

#include "retinaserve/decode.h"
#include "retinaserve/nms.h"

using retinaserve::DecodeProblem;
using retinaserve::NmsProblem;

extern "C"
{

char const* retinaserveDecodeFault(DecodeProblem const* problem)
{
    return retinaserve::decodeFault(*problem);
}

int64_t retinaserveDecodeSlots(DecodeProblem const* problem)
{
    return retinaserve::decodeSlots(*problem);
}

size_t retinaserveDecodeScratchBytes(DecodeProblem const* problem)
{
    return retinaserve::decodeScratchBytes(*problem);
}

int32_t retinaserveDecode(DecodeProblem const* problem, void const* const* logits, void const* const* deltas,
    float const* letterbox, float* outLogits, float* outBoxes, int32_t* outClasses, void* scratch, void* kept,
    CUstream_st* stream)
{
    return retinaserve::decode(
        *problem, logits, deltas, letterbox, outLogits, outBoxes, outClasses, scratch, kept, stream);
}

char const* retinaserveNmsFault(NmsProblem const* problem)
{
    return retinaserve::nmsFault(*problem);
}

size_t retinaserveNmsScratchBytes(NmsProblem const* problem)
{
    return retinaserve::nmsScratchBytes(*problem);
}

int32_t retinaserveNms(NmsProblem const* problem, float const* logits, float const* boxes, int32_t const* classes,
    float const* letterbox, int32_t* numDetections, float* outBoxes, float* outScores, int32_t* outClasses,
    void* scratch, CUstream_st* stream)
{
    return retinaserve::nms(
        *problem, logits, boxes, classes, letterbox, numDetections, outBoxes, outScores, outClasses, scratch, stream);
}

} // extern "C"
