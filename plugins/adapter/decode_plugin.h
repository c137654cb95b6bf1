// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file decode_plugin.h
//! \brief RetinaNetDecode: the decode kernels as a TensorRT layer. It checks and forwards, and computes nothing itself.

#pragma once

#include "plugin.h"

#include "retinaserve/decode.h"

#include <NvInferRuntime.h>

#include <array>
#include <string>

namespace retinaserve
{

//! The plugin's attributes, under the names of their fields.
struct DecodeAttributes
{
    std::vector<float> anchors;   //!< anchors: [levels][A][4]
    std::vector<int32_t> strides; //!< strides: [levels]
    float thresholdLogit;         //!< threshold_logit
    float deltaClamp;             //!< delta_clamp
    int32_t topK;                 //!< topk
    int32_t classes;              //!< classes; 0: as many as there are channels an anchor

    //! \throws FieldError that names the field.
    static DecodeAttributes read(FieldReader const& fields);
};

//! What decode keeps from one call of a context to the next; a copy begins without.
class Kept
{
public:
    Kept() = default;
    Kept(Kept const&) noexcept
    {
    }
    Kept& operator=(Kept const&) = delete;
    ~Kept()
    {
        releaseKept(mMemory);
    }

    void allocate() noexcept
    {
        mMemory = allocateKept();
    }

    void* get() const noexcept
    {
        return mMemory;
    }

private:
    void* mMemory{nullptr};
};

//! Inputs: logits and deltas, level by level, then letterbox. Outputs: logits, boxes, classes.
class DecodePlugin final : public Plugin<DecodePlugin>
{
public:
    static constexpr char const* kNAME = "RetinaNetDecode";
    static constexpr char const* kEXPECTED = "logits and deltas of every level and letterbox are expected";
    static constexpr std::array kTYPES{
        nvinfer1::DataType::kFLOAT, nvinfer1::DataType::kFLOAT, nvinfer1::DataType::kINT32};
    static constexpr int32_t kOUTPUTS = kTYPES.size();
    static constexpr std::array<std::pair<char const*, nvinfer1::PluginFieldType>, 6> kFIELDS{{
        {"anchors", nvinfer1::PluginFieldType::kFLOAT32},
        {"strides", nvinfer1::PluginFieldType::kINT32},
        {"threshold_logit", nvinfer1::PluginFieldType::kFLOAT32},
        {"delta_clamp", nvinfer1::PluginFieldType::kFLOAT32},
        {"topk", nvinfer1::PluginFieldType::kINT32},
        {"classes", nvinfer1::PluginFieldType::kINT32},
    }};

    explicit DecodePlugin(FieldReader const& fields);

    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
        int32_t nbOutputs) noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* shapeInputs,
        int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
        nvinfer1::IExprBuilder& exprBuilder) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;

    void attach() noexcept
    {
        mKept.allocate();
    }

    int32_t inputCount() const noexcept
    {
        return 2 * levels() + 1;
    }

    void check(Inputs const& inputs)
    {
        problem(inputs, mSizes);
    }

    size_t scratchBytes(Inputs const& inputs) const;
    void write(FieldWriter& fields) const;

private:
    int32_t levels() const noexcept;
    int32_t anchorsPerCell() const noexcept;

    //! The kernels' problem for these inputs; it points into `sizes`, [2][levels].
    //! \throws std::invalid_argument that names the input, where dimensions do not fit each other or the attributes.
    DecodeProblem problem(Inputs const& inputs, std::vector<int32_t>& sizes) const;

    DecodeAttributes mAttributes;
    Kept mKept;
    // What enqueue needs and must not allocate.
    std::vector<int32_t> mSizes;
    std::vector<void const*> mLogits;
    std::vector<void const*> mDeltas;
};

} // namespace retinaserve
