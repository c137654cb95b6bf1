// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file decode_plugin.h
//! \brief RetinaNetDecode: the decode kernels as a TensorRT layer. It checks and forwards, and computes nothing itself.

#pragma once

#include "fields.h"
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
    static constexpr int32_t kOUTPUTS = 3;
    static constexpr std::array<std::pair<char const*, nvinfer1::PluginFieldType>, 6> kFIELDS{{
        {"anchors", nvinfer1::PluginFieldType::kFLOAT32},
        {"strides", nvinfer1::PluginFieldType::kINT32},
        {"threshold_logit", nvinfer1::PluginFieldType::kFLOAT32},
        {"delta_clamp", nvinfer1::PluginFieldType::kFLOAT32},
        {"topk", nvinfer1::PluginFieldType::kINT32},
        {"classes", nvinfer1::PluginFieldType::kINT32},
    }};

    explicit DecodePlugin(FieldReader const& fields);

    // IPluginV3OneBuild
    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
        int32_t nbOutputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const* inputTypes,
        int32_t nbInputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* shapeInputs,
        int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
        nvinfer1::IExprBuilder& exprBuilder) noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t nbOutputs) const noexcept override;

    // IPluginV3OneRuntime
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const* out,
        int32_t nbOutputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

    void attach() noexcept
    {
        mKept.allocate();
    }

private:
    int32_t levels() const noexcept;
    int32_t anchorsPerCell() const noexcept;

    //! The kernels' problem, for heads like this and inputs of these dimensions; it points into `sizes`, [2][levels].
    //! \throws std::invalid_argument that names the input, where dimensions do not fit each other or the attributes.
    template <typename DimsOf>
    DecodeProblem problem(
        DimsOf const& dimsOf, nvinfer1::PluginTensorDesc const& head, std::vector<int32_t>& sizes) const;

    DecodeAttributes mAttributes;
    Kept mKept;
    // What enqueue needs and must not allocate.
    std::vector<int32_t> mSizes;
    std::vector<void const*> mLogits;
    std::vector<void const*> mDeltas;
    FieldWriter mWriter;
};

} // namespace retinaserve
