// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file plugin.h
//! \brief What TensorRT asks of every plugin and both of ours answer alike: capabilities, name, copies.

#pragma once

#include "errors.h"

#include <NvInferRuntime.h>

#include <memory>

namespace retinaserve
{

//! \tparam Derived states kNAME and kOUTPUTS, and can be copied.
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
        return Derived::kOUTPUTS;
    }
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
