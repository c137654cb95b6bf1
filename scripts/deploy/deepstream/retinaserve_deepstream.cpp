// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file retinaserve_deepstream.cpp
//! \brief What DeepStream's nvinferserver asks of a custom library: the second input, and boxes out of the outputs.
//!
//! DeepStream scales boxes from the network's pixels to the frame's by itself, so the letterbox says that the two are
//! one: boxes come back in pixels of the network's input.

#include <nvdsinfer_custom_impl.h>

#include <algorithm>
#include <cstring>

namespace
{

NvDsInferLayerInfo const* find(std::vector<NvDsInferLayerInfo> const& layers, char const* name, NvDsInferDataType type)
{
    auto const isIt = [=](NvDsInferLayerInfo const& layer)
    { return layer.layerName != nullptr && std::strcmp(layer.layerName, name) == 0 && layer.dataType == type; };
    auto const found = std::find_if(layers.begin(), layers.end(), isIt);
    return found == layers.end() || found->buffer == nullptr ? nullptr : &*found;
}

} // namespace

//! Fill `letterbox`, (batch, 4): original h, w, resized h, w. Called once, before the first frame.
extern "C" bool NvDsInferInitializeInputLayers(std::vector<NvDsInferLayerInfo> const& inputLayersInfo,
    NvDsInferNetworkInfo const& networkInfo, unsigned int maxBatchSize)
{
    auto const* const letterbox = find(inputLayersInfo, "letterbox", FLOAT);
    if (inputLayersInfo.size() != 1 || letterbox == nullptr || letterbox->inferDims.numElements != 4)
    {
        return false;
    }
    float const height = static_cast<float>(networkInfo.height);
    float const width = static_cast<float>(networkInfo.width);
    float const image[]{height, width, height, width};
    for (unsigned int i = 0; i < maxBatchSize; ++i)
    {
        std::memcpy(static_cast<float*>(letterbox->buffer) + 4 * i, image, sizeof(image));
    }
    return true;
}

//! One frame's detections, best first; NMS is done already.
extern "C" bool retinaserveParse(std::vector<NvDsInferLayerInfo> const& outputLayersInfo, NvDsInferNetworkInfo const&,
    NvDsInferParseDetectionParams const& detectionParams, std::vector<NvDsInferObjectDetectionInfo>& objectList)
{
    auto const* const count = find(outputLayersInfo, "num_detections", INT32);
    auto const* const boxes = find(outputLayersInfo, "boxes", FLOAT);
    auto const* const scores = find(outputLayersInfo, "scores", FLOAT);
    auto const* const classes = find(outputLayersInfo, "classes", INT32);
    if (count == nullptr || boxes == nullptr || scores == nullptr || classes == nullptr)
    {
        return false;
    }
    int const slots = static_cast<int>(scores->inferDims.numElements);
    int const found = std::min(*static_cast<int const*>(count->buffer), slots);
    for (int i = 0; i < found; ++i)
    {
        float const* const box = static_cast<float const*>(boxes->buffer) + 4 * i; // x1 y1 x2 y2
        float const score = static_cast<float const*>(scores->buffer)[i];
        auto const label = static_cast<unsigned int>(static_cast<int const*>(classes->buffer)[i]);
        if (label < detectionParams.numClassesConfigured && score >= detectionParams.perClassPreclusterThreshold[label])
        {
            NvDsInferObjectDetectionInfo object{}; // DeepStream 9 has members that 7 has not
            object.classId = label;
            object.left = box[0];
            object.top = box[1];
            object.width = box[2] - box[0];
            object.height = box[3] - box[1];
            object.detectionConfidence = score;
            objectList.push_back(object);
        }
    }
    return true;
}

CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(retinaserveParse)
