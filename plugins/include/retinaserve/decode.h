// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file decode.h
//! \brief From raw heads to the best candidates of every level: the kernels' interface, without CUDA or TensorRT types.
//!
//! The arithmetic is that of `decode` in plugins/reference.py. decode() does not allocate, wait for the device or copy
//! from the host, so a call can be captured in a CUDA graph.

#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace retinaserve
{

constexpr int32_t kMAX_TOPK = 4096;          //!< Candidates a level, at most: a block keeps them in shared memory.
constexpr int32_t kMAX_ANCHORS = 128;        //!< Anchors a cell, at most: they travel as kernel arguments.
constexpr int64_t kMAX_LOGITS = 0xFFFFFFFEL; //!< Logits of one image and level, at most: an index has 32 bits.

constexpr size_t kKEPT_BYTES = 128 * 1024; //!< What calls one after another may share: decode().

//! All that defines a decode besides its tensors. The pointers are to host memory and are read before decode() returns.
struct DecodeProblem
{
    int32_t batch;
    int32_t levels;
    int32_t classes;        //!< C
    int32_t anchorsPerCell; //!< A
    int32_t const* heights; //!< [levels]
    int32_t const* widths;  //!< [levels]
    int32_t const* strides; //!< [levels], pixels
    float const* anchors;   //!< [levels][A][4]: x1 y1 x2 y2 from the cell's origin, pixels
    float thresholdLogit;   //!< candidates are above it
    float deltaClamp;       //!< upper limit of dw and dh
    int32_t topK;           //!< candidates a level
    int32_t halfPrecision;  //!< 1: logits and deltas are FP16; 0: FP32
    int32_t logitChannels;  //!< of the tensors of logits: A*C, or more; those behind A*C mean nothing
    int32_t deltaChannels;  //!< of the tensors of deltas: A*4, or more
    int32_t channelsLast;   //!< 1: these tensors are (B, h, w, channels); 0: (B, channels, h, w)
};

//! \return what is wrong with a problem, or nullptr.
char const* decodeFault(DecodeProblem const& problem) noexcept;

//! \return N, the slots of an image: the sum of min(topK, A*C*h*w) over the levels.
int64_t decodeSlots(DecodeProblem const& problem) noexcept;

//! \return the bytes of scratch of this problem and of every one that is smaller in batch, heights or widths.
size_t decodeScratchBytes(DecodeProblem const& problem) noexcept;

//! \return kKEPT_BYTES of device memory that are zero, or nullptr. The only call that allocates.
void* allocateKept() noexcept;
void releaseKept(void* kept) noexcept;

//! \brief Fill the slots of all images; all pointers but logits and deltas themselves are to device memory.
//!
//! \param logits [levels] pointers to (B, A*C, h, w), channel a*C + c, aligned to their elements. Whatever the layout,
//!     a logit's flat index is its place in this one.
//! \param deltas [levels] pointers to (B, A*4, h, w), channel a*4 + i, i of dx dy dw dh.
//! \param letterbox (B, 4): original h, w, resized h, w.
//! \param outLogits (B, N): best first a level, ties to the lower flat index; -inf in empty slots.
//! \param outBoxes (B, N, 4), 16-byte aligned: letterboxed pixels, clipped to the resized area; 0 in empty slots.
//! \param outClasses (B, N); 0 in empty slots.
//! \param scratch decodeScratchBytes(), 256-byte aligned, of any content.
//! \param kept of allocateKept(), for calls that do not overlap: each leaves it zero. Without it, or for more than 8192
//!     images times levels, a call begins by clearing a part of scratch.
//! \return a cudaError_t; 0 is success.
int32_t decode(DecodeProblem const& problem, void const* const* logits, void const* const* deltas,
    float const* letterbox, float* outLogits, float* outBoxes, int32_t* outClasses, void* scratch, void* kept,
    CUstream_st* stream) noexcept;

} // namespace retinaserve
