// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file nms_plugin.h
//! \brief RetinaNetNMS: the NMS kernels as a TensorRT layer. It checks and forwards, and computes nothing itself.

#pragma once

#include "fields.h"
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
    static constexpr int32_t kINPUTS = 4;
    static constexpr int32_t kOUTPUTS = 4;
    static constexpr std::array<std::pair<char const*, nvinfer1::PluginFieldType>, 2> kFIELDS{{
        {"iou", nvinfer1::PluginFieldType::kFLOAT32},
        {"max_detections", nvinfer1::PluginFieldType::kINT32},
    }};

    explicit NmsPlugin(FieldReader const& fields);

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

private:
    //! The kernels' problem, for inputs of these dimensions.
    //! \throws std::invalid_argument where dimensions do not fit each other.
    template <typename DimsOf>
    NmsProblem problem(DimsOf const& dimsOf) const;

    NmsAttributes mAttributes;
    FieldWriter mWriter;
};

} // namespace retinaserve
