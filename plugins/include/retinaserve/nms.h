// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file nms.h
//! \brief From candidates to detections in original pixels: the kernels' interface, without CUDA or TensorRT types.
//!
//! The arithmetic is that of `nms` in plugins/reference.py, bit for bit but for the sigmoid. Nothing here allocates,
//! waits for the device or copies from the host, so a call can be captured in a CUDA graph.

#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace retinaserve
{

constexpr int32_t kMAX_DETECTIONS = 4096;    //!< Detections an image, at most: a block keeps them in shared memory.
constexpr int32_t kMAX_CANDIDATES = 1 << 20; //!< Candidates an image, at most.

//! All that defines an NMS besides its tensors.
struct NmsProblem
{
    int32_t batch;
    int32_t candidates;    //!< N
    int32_t maxDetections; //!< K
    float iou;             //!< a better candidate of the same class suppresses above it
};

//! \return what is wrong with a problem, or nullptr.
char const* nmsFault(NmsProblem const& problem) noexcept;

//! \return the bytes of scratch of this problem and of every one that is smaller in batch or candidates.
size_t nmsScratchBytes(NmsProblem const& problem) noexcept;

//! \brief Suppress, undo the letterbox and clip; all pointers are to device memory.
//!
//! \param logits (B, N), in any order; -inf is an empty slot. Ties go to the earlier candidate.
//! \param boxes (B, N, 4), 16-byte aligned: x1 y1 x2 y2, letterboxed pixels.
//! \param classes (B, N).
//! \param letterbox (B, 4): original h, w, resized h, w.
//! \param numDetections (B, 1).
//! \param outBoxes (B, K, 4), 16-byte aligned: pixels of the original image, clipped to it. Behind the last: zeros.
//! \param outScores (B, K). Behind the last: zeros.
//! \param outClasses (B, K). Behind the last: zeros.
//! \param scratch nmsScratchBytes(), 256-byte aligned, of any content.
//! \return a cudaError_t; 0 is success.
int32_t nms(NmsProblem const& problem, float const* logits, float const* boxes, int32_t const* classes,
    float const* letterbox, int32_t* numDetections, float* outBoxes, float* outScores, int32_t* outClasses,
    void* scratch, CUstream_st* stream) noexcept;

} // namespace retinaserve
