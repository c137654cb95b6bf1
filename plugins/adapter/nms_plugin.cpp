// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

#include "nms_plugin.h"

namespace retinaserve
{

using namespace nvinfer1;

NmsAttributes NmsAttributes::read(FieldReader const& fields)
{
    NmsAttributes const found{fields.number("iou"), fields.integer("max_detections")};
    if (!(found.iou >= 0.0F && found.iou <= 1.0F))
    {
        throw FieldError("field 'iou' is " + std::to_string(found.iou) + ", but 0 to 1 is expected");
    }
    if (found.maxDetections < 1 || found.maxDetections > kMAX_DETECTIONS)
    {
        throw FieldError(
            "field 'max_detections' is " + std::to_string(found.maxDetections) + ", but 1 to 4096 is expected");
    }
    return found;
}

NmsPlugin::NmsPlugin(FieldReader const& fields)
    : mAttributes(NmsAttributes::read(fields))
{
}

NmsProblem NmsPlugin::problem(Inputs const& inputs) const
{
    Dims const logits = inputs.dims(0);
    Dims const boxes = inputs.dims(1);
    Dims const classes = inputs.dims(2);
    Dims const letterbox = inputs.dims(3);
    expect(logits.nbDims == 2, "logits must be (batch, candidates)");
    expect(boxes.nbDims == 3 && boxes.d[0] == logits.d[0] && boxes.d[1] == logits.d[1] && boxes.d[2] == 4,
        "boxes must be (batch, candidates, 4), as many as logits");
    expect(classes.nbDims == 2 && classes.d[0] == logits.d[0] && classes.d[1] == logits.d[1],
        "classes must be (batch, candidates), as many as logits");
    expect(
        letterbox.nbDims == 2 && letterbox.d[0] == logits.d[0] && letterbox.d[1] == 4, "letterbox must be (batch, 4)");
    NmsProblem const made{static_cast<int32_t>(logits.d[0]), static_cast<int32_t>(logits.d[1]),
        mAttributes.maxDetections, mAttributes.iou};
    char const* const fault = nmsFault(made);
    expect(fault == nullptr, fault);
    return made;
}

bool NmsPlugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    if (nbInputs != kINPUTS || nbOutputs != kOUTPUTS || inOut[pos].desc.format != TensorFormat::kLINEAR)
    {
        return false;
    }
    bool const isInteger = pos == 2 || pos == kINPUTS || pos == kINPUTS + 3; // classes, num_detections, classes
    return inOut[pos].desc.type == (isInteger ? DataType::kINT32 : DataType::kFLOAT);
}

int32_t NmsPlugin::getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const*, int32_t,
    DimsExprs* outputs, int32_t nbOutputs, IExprBuilder& exprBuilder) noexcept
{
    return guarded(kNAME, -1,
        [&]
        {
            expect(nbInputs == kINPUTS && nbOutputs == kOUTPUTS, kEXPECTED);
            for (int32_t output = 0; output < kOUTPUTS; ++output)
            {
                outputs[output].nbDims = output == 1 ? 3 : 2;
                outputs[output].d[0] = inputs[0].d[0];
                outputs[output].d[1] = exprBuilder.constant(output == 0 ? 1 : mAttributes.maxDetections);
            }
            outputs[1].d[2] = exprBuilder.constant(4);
            return 0;
        });
}

int32_t NmsPlugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const*, void const* const* inputs,
    void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    return guarded(kNAME, -1,
        [&]
        {
            NmsProblem const now = problem({inputDesc});
            checkLaunch(nms(now, static_cast<float const*>(inputs[0]), static_cast<float const*>(inputs[1]),
                static_cast<int32_t const*>(inputs[2]), static_cast<float const*>(inputs[3]),
                static_cast<int32_t*>(outputs[0]), static_cast<float*>(outputs[1]), static_cast<float*>(outputs[2]),
                static_cast<int32_t*>(outputs[3]), workspace, stream));
            return 0;
        });
}

size_t NmsPlugin::scratchBytes(Inputs const& inputs) const
{
    return nmsScratchBytes(problem(inputs));
}

void NmsPlugin::write(FieldWriter& fields) const
{
    fields.add("iou", &mAttributes.iou);
    fields.add("max_detections", &mAttributes.maxDetections);
}

} // namespace retinaserve
