// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

#include "decode_plugin.h"
#include "errors.h"
#include "nms_plugin.h"

#include <memory>

namespace retinaserve
{
namespace
{

using namespace nvinfer1;

//! Makes plugins of a class that states its name and fields.
template <typename Plugin>
class Creator final : public IPluginCreatorV3One
{
public:
    Creator()
    {
        for (size_t i = 0; i < Plugin::kFIELDS.size(); ++i)
        {
            auto const& [name, type] = Plugin::kFIELDS[i];
            mFields[i] = PluginField(name, nullptr, type, 1);
        }
    }

    IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const* fields, TensorRTPhase) noexcept override
    {
        return guarded<IPluginV3*>(
            Plugin::kNAME, nullptr, [fields] { return std::make_unique<Plugin>(FieldReader(fields)).release(); });
    }

    PluginFieldCollection const* getFieldNames() noexcept override
    {
        return &mCollection;
    }

    AsciiChar const* getPluginName() const noexcept override
    {
        return Plugin::kNAME;
    }

    AsciiChar const* getPluginVersion() const noexcept override
    {
        return "1";
    }

    AsciiChar const* getPluginNamespace() const noexcept override
    {
        return "";
    }

private:
    std::array<PluginField, Plugin::kFIELDS.size()> mFields{};
    PluginFieldCollection mCollection{static_cast<int32_t>(Plugin::kFIELDS.size()), mFields.data()};
};

} // namespace
} // namespace retinaserve

// What TensorRT looks for in a plugin library.
#define RETINASERVE_EXPORT extern "C" __attribute__((visibility("default")))

RETINASERVE_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators)
{
    static retinaserve::Creator<retinaserve::DecodePlugin> decode;
    static retinaserve::Creator<retinaserve::NmsPlugin> nms;
    static nvinfer1::IPluginCreatorInterface* const creators[]{&decode, &nms};
    nbCreators = 2;
    return creators;
}

RETINASERVE_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder)
{
    retinaserve::setFinder(finder);
}
