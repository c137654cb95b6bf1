// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

#include "decode_plugin.h"

#include <algorithm>

namespace retinaserve
{

using namespace nvinfer1;

DecodeAttributes DecodeAttributes::read(FieldReader const& fields)
{
    DecodeAttributes found{fields.numbers("anchors"), fields.integers("strides"), fields.number("threshold_logit"),
        fields.number("delta_clamp"), fields.integer("topk"), fields.integerOr("classes", 0)};
    size_t const levels = found.strides.size();
    size_t const perCell = found.anchors.size() / (4 * levels);
    if (found.anchors.size() % (4 * levels) != 0 || perCell > static_cast<size_t>(kMAX_ANCHORS))
    {
        throw FieldError("field 'anchors' has " + std::to_string(found.anchors.size())
            + " values, but 4 for each of 1 to 128 anchors of each of the " + std::to_string(levels)
            + " strides are expected");
    }
    if (*std::min_element(found.strides.begin(), found.strides.end()) < 1)
    {
        throw FieldError("field 'strides' has a value below 1");
    }
    if (found.topK < 1 || found.topK > kMAX_TOPK)
    {
        throw FieldError("field 'topk' is " + std::to_string(found.topK) + ", but 1 to 4096 is expected");
    }
    if (!(found.thresholdLogit - found.thresholdLogit == 0.0F))
    {
        throw FieldError("field 'threshold_logit' is not a finite number");
    }
    if (!(found.deltaClamp == found.deltaClamp))
    {
        throw FieldError("field 'delta_clamp' is not a number");
    }
    if (found.classes < 0)
    {
        throw FieldError("field 'classes' is " + std::to_string(found.classes) + ", but 0 or more is expected");
    }
    return found;
}

DecodePlugin::DecodePlugin(FieldReader const& fields)
    : mAttributes(DecodeAttributes::read(fields))
    , mSizes(2 * mAttributes.strides.size())
    , mLogits(mAttributes.strides.size())
    , mDeltas(mAttributes.strides.size())
{
}

int32_t DecodePlugin::levels() const noexcept
{
    return static_cast<int32_t>(mAttributes.strides.size());
}

int32_t DecodePlugin::anchorsPerCell() const noexcept
{
    return static_cast<int32_t>(mAttributes.anchors.size() / (4 * mAttributes.strides.size()));
}

namespace
{

//! Channels in memory where vectors of eight channels are last.
int64_t roundedUp(int64_t channels)
{
    return (channels + 7) / 8 * 8;
}

//! Whether a tensor holds so many channels: exactly, or with what fills the last eight.
bool holds(int64_t channels, int64_t expected)
{
    return channels == expected || channels == roundedUp(expected);
}

} // namespace

DecodeProblem DecodePlugin::problem(Inputs const& inputs, std::vector<int32_t>& sizes) const
{
    PluginTensorDesc const& head = inputs.now != nullptr ? *inputs.now : inputs.largest->desc;
    int64_t const perCell = anchorsPerCell();
    Dims const first = inputs.dims(0);
    int64_t const byChannels = first.d[1] % perCell == 0 ? first.d[1] / perCell : 0;
    int64_t const classes = mAttributes.classes > 0 ? mAttributes.classes : byChannels;
    Dims const letterbox = inputs.dims(2 * levels());
    expect(letterbox.nbDims == 2 && letterbox.d[1] == 4, "the last input, letterbox, must be (batch, 4)");
    for (int32_t level = 0; level < levels(); ++level)
    {
        Dims const logits = inputs.dims(2 * level);
        Dims const deltas = inputs.dims(2 * level + 1);
        expect(logits.nbDims == 4 && deltas.nbDims == 4, "logits and deltas must have 4 dimensions", level);
        expect(logits.d[0] == letterbox.d[0] && deltas.d[0] == letterbox.d[0], "another batch than letterbox", level);
        expect(classes > 0 && holds(logits.d[1], perCell * classes) && logits.d[1] == first.d[1],
            "logits must have (anchors x classes) channels, as many on every level", level);
        expect(holds(deltas.d[1], 4 * perCell) && deltas.d[1] == inputs.dims(1).d[1],
            "deltas must have (anchors x 4) channels", level);
        expect(logits.d[2] == deltas.d[2] && logits.d[3] == deltas.d[3], "logits and deltas differ in size", level);
        sizes[level] = static_cast<int32_t>(logits.d[2]);
        sizes[levels() + level] = static_cast<int32_t>(logits.d[3]);
    }
    bool const isVectorised = head.format == TensorFormat::kHWC8;
    auto const stored = [isVectorised](int64_t channels)
    { return static_cast<int32_t>(isVectorised ? roundedUp(channels) : channels); };
    DecodeProblem const made{static_cast<int32_t>(letterbox.d[0]), levels(), static_cast<int32_t>(classes),
        static_cast<int32_t>(perCell), sizes.data(), sizes.data() + levels(), mAttributes.strides.data(),
        mAttributes.anchors.data(), mAttributes.thresholdLogit, mAttributes.deltaClamp, mAttributes.topK,
        head.type == DataType::kHALF ? 1 : 0, stored(first.d[1]), stored(inputs.dims(1).d[1]),
        head.format == TensorFormat::kLINEAR ? 0 : 1};
    char const* const fault = decodeFault(made);
    expect(fault == nullptr, fault);
    return made;
}

bool DecodePlugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    if (nbInputs != inputCount() || nbOutputs != kOUTPUTS)
    {
        return false;
    }
    PluginTensorDesc const& tensor = inOut[pos].desc;
    if (pos < nbInputs - 1)
    {
        // As convolutions leave them, so that nothing has to be brought into another order. All heads alike.
        TensorFormat const last = tensor.type == DataType::kHALF ? TensorFormat::kHWC8 : TensorFormat::kHWC;
        return (tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF)
            && (tensor.format == TensorFormat::kLINEAR || tensor.format == last) && tensor.type == inOut[0].desc.type
            && tensor.format == inOut[0].desc.format;
    }
    return tensor.format == TensorFormat::kLINEAR
        && tensor.type == (pos == nbInputs + 2 ? DataType::kINT32 : DataType::kFLOAT);
}

int32_t DecodePlugin::getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const*, int32_t,
    DimsExprs* outputs, int32_t nbOutputs, IExprBuilder& exprBuilder) noexcept
{
    return guarded(kNAME, -1,
        [&]
        {
            expect(nbInputs == inputCount() && nbOutputs == kOUTPUTS, kEXPECTED);
            IDimensionExpr const* slots = exprBuilder.constant(0);
            for (int32_t level = 0; level < levels(); ++level)
            {
                DimsExprs const& logits = inputs[2 * level];
                expect(logits.nbDims == 4, "logits must have 4 dimensions");
                auto const* cells = exprBuilder.operation(DimensionOperation::kPROD, *logits.d[2], *logits.d[3]);
                auto const* channels = mAttributes.classes > 0
                    ? exprBuilder.constant(static_cast<int64_t>(anchorsPerCell()) * mAttributes.classes)
                    : logits.d[1];
                auto const* size = exprBuilder.operation(DimensionOperation::kPROD, *channels, *cells);
                auto const* topK = exprBuilder.constant(mAttributes.topK);
                auto const* taken = exprBuilder.operation(DimensionOperation::kMIN, *size, *topK);
                slots = exprBuilder.operation(DimensionOperation::kSUM, *slots, *taken);
            }
            for (int32_t output = 0; output < kOUTPUTS; ++output)
            {
                outputs[output].nbDims = output == 1 ? 3 : 2;
                outputs[output].d[0] = inputs[0].d[0];
                outputs[output].d[1] = slots;
            }
            outputs[1].d[2] = exprBuilder.constant(4);
            return 0;
        });
}

int32_t DecodePlugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const*, void const* const* inputs,
    void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    return guarded(kNAME, -1,
        [&]
        {
            DecodeProblem const now = problem({inputDesc}, mSizes);
            for (int32_t level = 0; level < levels(); ++level)
            {
                mLogits[level] = inputs[2 * level];
                mDeltas[level] = inputs[2 * level + 1];
            }
            checkLaunch(decode(now, mLogits.data(), mDeltas.data(), static_cast<float const*>(inputs[2 * levels()]),
                static_cast<float*>(outputs[0]), static_cast<float*>(outputs[1]), static_cast<int32_t*>(outputs[2]),
                workspace, mKept.get(), stream));
            return 0;
        });
}

size_t DecodePlugin::scratchBytes(Inputs const& inputs) const
{
    std::vector<int32_t> sizes(mSizes.size());
    return decodeScratchBytes(problem(inputs, sizes));
}

void DecodePlugin::write(FieldWriter& fields) const
{
    fields.add("anchors", mAttributes.anchors.data(), mAttributes.anchors.size());
    fields.add("strides", mAttributes.strides.data(), mAttributes.strides.size());
    fields.add("threshold_logit", &mAttributes.thresholdLogit);
    fields.add("delta_clamp", &mAttributes.deltaClamp);
    fields.add("topk", &mAttributes.topK);
    fields.add("classes", &mAttributes.classes);
}

} // namespace retinaserve
