// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file runtime.h
//! \brief What TensorRT hands to a plugin: a logger, a context, fields out of a plan, expressions of dimensions.

#pragma once

#include "memory.h"

#include <NvInferRuntime.h>

#include <memory>
#include <vector>

namespace retinaserve
{

using namespace nvinfer1;

//! Collects what plugins log.
class Log final : public ILogger
{
public:
    void log(Severity, AsciiChar const* message) noexcept override
    {
        text += text.empty() ? "" : "; ";
        text += message;
    }

    std::string text;
};

class Finder final : public ILoggerFinder
{
public:
    ILogger* findLogger() override
    {
        return &logger;
    }

    Log logger;
};

class Context final : public IPluginResourceContext
{
public:
    IGpuAllocator* getGpuAllocator() const noexcept override
    {
        return nullptr;
    }

    IErrorRecorder* getErrorRecorder() const noexcept override
    {
        return nullptr;
    }
};

//! A copy of serialised fields that owns its data, as a plan file does.
class Fields
{
public:
    explicit Fields(PluginFieldCollection const* fields)
    {
        expect(fields != nullptr, "getFieldsToSerialize returned nullptr");
        for (int32_t i = 0; i < fields->nbFields; ++i)
        {
            PluginField const& field = fields->fields[i];
            bool const isKnown = field.type == PluginFieldType::kFLOAT32 || field.type == PluginFieldType::kINT32;
            expect(isKnown, std::string("field '") + field.name + "' is serialised as another type");
            mNames.push_back(field.name);
            auto const* const data = static_cast<uint8_t const*>(field.data);
            mData.emplace_back(data, data + static_cast<size_t>(field.length) * 4);
            mTypes.push_back(field.type);
        }
        for (size_t i = 0; i < mNames.size(); ++i)
        {
            int32_t const length = static_cast<int32_t>(mData[i].size() / 4);
            mFields.emplace_back(mNames[i].c_str(), mData[i].data(), mTypes[i], length);
        }
        mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
    }

    Fields(Fields const&) = delete;

    bool operator==(Fields const& other) const
    {
        return mNames == other.mNames && mData == other.mData && mTypes == other.mTypes;
    }

    PluginFieldCollection const* collection() const
    {
        return &mCollection;
    }

private:
    std::vector<std::string> mNames;
    std::vector<std::vector<uint8_t>> mData;
    std::vector<PluginFieldType> mTypes;
    std::vector<PluginField> mFields;
    PluginFieldCollection mCollection{};
};

//! A dimension: a number, or one known at run time only.
class Expression final : public IDimensionExpr, public apiv::VDimensionExpr
{
public:
    explicit Expression(int64_t value)
        : mValue(value)
    {
        mImpl = this;
    }

    bool isConstant() const override
    {
        return mValue >= 0;
    }

    int64_t getConstantValue() const override
    {
        return mValue;
    }

    bool isSizeTensor() const override
    {
        return false;
    }

private:
    int64_t mValue;
};

//! Computes with constant dimensions; whatever is made of an unknown one is unknown.
class Expressions final : public IExprBuilder, public apiv::VExprBuilder
{
public:
    Expressions()
    {
        mImpl = this;
    }

    IDimensionExpr const* constant(int64_t value) override
    {
        mMade.push_back(std::make_unique<Expression>(value));
        return mMade.back().get();
    }

    IDimensionExpr const* operation(
        DimensionOperation op, IDimensionExpr const& first, IDimensionExpr const& second) override
    {
        if (!first.isConstant() || !second.isConstant())
        {
            return constant(-1);
        }
        int64_t const a = first.getConstantValue();
        int64_t const b = second.getConstantValue();
        switch (op)
        {
        case DimensionOperation::kSUM: return constant(a + b);
        case DimensionOperation::kPROD: return constant(a * b);
        case DimensionOperation::kMIN: return constant(a < b ? a : b);
        default: throw std::runtime_error("an operation on dimensions that the harness does not know");
        }
    }

    IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override
    {
        throw std::runtime_error("a size tensor was declared, but outputs have fixed sizes");
    }

private:
    std::vector<std::unique_ptr<Expression>> mMade;
};

} // namespace retinaserve
