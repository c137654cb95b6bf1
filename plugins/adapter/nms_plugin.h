// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file nms_plugin.h
//! \brief RetinaNetNMS: the NMS kernels as a TensorRT layer. It checks and forwards, and computes nothing itself.

#pragma once

#include "plugin.h"

#include "retinaserve/nms.h"

#include <NvInferRuntime.h>

#include <array>
#include <string>

namespace retinaserve
{

//! The plugin's attributes, under the names of their fields.
struct NmsAttributes
{
    float iou;             //!< iou
    int32_t maxDetections; //!< max_detections

    //! \throws FieldError that names the field.
    static NmsAttributes read(FieldReader const& fields);
};

//! Inputs: logits, boxes, classes, letterbox. Outputs: num_detections, boxes, scores, classes.
class NmsPlugin final : public Plugin<NmsPlugin>
{
public:
    static constexpr char const* kNAME = "RetinaNetNMS";
    static constexpr char const* kEXPECTED = "logits, boxes, classes and letterbox are expected";
    static constexpr int32_t kINPUTS = 4;
    static constexpr std::array kTYPES{
        nvinfer1::DataType::kINT32, nvinfer1::DataType::kFLOAT, nvinfer1::DataType::kFLOAT, nvinfer1::DataType::kINT32};
    static constexpr int32_t kOUTPUTS = kTYPES.size();
    static constexpr std::array<std::pair<char const*, nvinfer1::PluginFieldType>, 2> kFIELDS{{
        {"iou", nvinfer1::PluginFieldType::kFLOAT32},
        {"max_detections", nvinfer1::PluginFieldType::kINT32},
    }};

    explicit NmsPlugin(FieldReader const& fields);

    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
        int32_t nbOutputs) noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* shapeInputs,
        int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
        nvinfer1::IExprBuilder& exprBuilder) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;

    int32_t inputCount() const noexcept
    {
        return kINPUTS;
    }

    void check(Inputs const& inputs) const
    {
        problem(inputs);
    }

    size_t scratchBytes(Inputs const& inputs) const;
    void write(FieldWriter& fields) const;

private:
    //! The kernels' problem for these inputs.
    //! \throws std::invalid_argument where dimensions do not fit each other.
    NmsProblem problem(Inputs const& inputs) const;

    NmsAttributes mAttributes;
};

} // namespace retinaserve
