// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file plugin.h
//! \brief What TensorRT asks of every plugin and both of ours answer alike: capabilities, name, copies, checks.

#pragma once

#include "errors.h"
#include "fields.h"

#include <NvInferRuntime.h>

#include <algorithm>
#include <memory>

namespace retinaserve
{

//! A layer's inputs: as they are, or, without those, at the largest that an engine is built for.
struct Inputs
{
    nvinfer1::PluginTensorDesc const* now;
    nvinfer1::DynamicPluginTensorDesc const* largest{nullptr};

    nvinfer1::Dims const& dims(int32_t input) const
    {
        return now != nullptr ? now[input].dims : largest[input].max;
    }
};

//! \tparam Derived can be copied, and has kNAME, kEXPECTED (its inputs in words), kTYPES (of its outputs),
//! inputCount(), check(Inputs) and scratchBytes(Inputs), which throw where inputs do not fit, and write(FieldWriter).
template <typename Derived>
class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime
{
public:
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept final
    {
        switch (type)
        {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    nvinfer1::IPluginV3* clone() noexcept final
    {
        return guarded<nvinfer1::IPluginV3*>(Derived::kNAME, nullptr,
            [this] { return std::make_unique<Derived>(static_cast<Derived const&>(*this)).release(); });
    }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept final
    {
        return guarded<nvinfer1::IPluginV3*>(Derived::kNAME, nullptr,
            [this]
            {
                auto attached = std::make_unique<Derived>(static_cast<Derived const&>(*this));
                attached->attach();
                return attached.release();
            });
    }

    //! Allocate what a context needs for itself.
    void attach() noexcept
    {
    }

    char const* getPluginName() const noexcept final
    {
        return Derived::kNAME;
    }

    char const* getPluginVersion() const noexcept final
    {
        return "1";
    }

    char const* getPluginNamespace() const noexcept final
    {
        return "";
    }

    int32_t getNbOutputs() const noexcept final
    {
        return static_cast<int32_t>(Derived::kTYPES.size());
    }

    int32_t getOutputDataTypes(
        nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const*, int32_t) const noexcept final
    {
        if (nbOutputs != getNbOutputs())
        {
            return -1;
        }
        std::copy(Derived::kTYPES.begin(), Derived::kTYPES.end(), outputTypes);
        return 0;
    }

    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const*, int32_t) noexcept final
    {
        return check({nullptr, in}, nbInputs);
    }

    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const*,
        int32_t) noexcept final
    {
        return check({in}, nbInputs);
    }

    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t,
        nvinfer1::DynamicPluginTensorDesc const*, int32_t) const noexcept final
    {
        return guarded<size_t>(
            Derived::kNAME, 0, [&] { return static_cast<Derived const*>(this)->scratchBytes({nullptr, inputs}); });
    }

    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept final
    {
        return guarded<nvinfer1::PluginFieldCollection const*>(Derived::kNAME, nullptr,
            [this]
            {
                mWriter.clear();
                static_cast<Derived*>(this)->write(mWriter);
                return mWriter.collection();
            });
    }

private:
    int32_t check(Inputs const& inputs, int32_t count) noexcept
    {
        return guarded(Derived::kNAME, -1,
            [&]
            {
                auto* const derived = static_cast<Derived*>(this);
                expect(count == derived->inputCount(), Derived::kEXPECTED);
                derived->check(inputs);
                return 0;
            });
    }

    FieldWriter mWriter;
};

//! \throws std::runtime_error unless a launch has succeeded.
inline void checkLaunch(int32_t error)
{
    if (error != 0)
    {
        throw std::runtime_error("launch failed with cudaError_t " + std::to_string(error));
    }
}

} // namespace retinaserve
