// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file fields.h
//! \brief A plugin's fields by name: reading them with an error that names the culprit, and writing them.

#pragma once

#include <NvInferRuntime.h>

#include <stdexcept>
#include <vector>

namespace retinaserve
{

//! A field is missing, or not of the type, length or value that is expected; what() names it.
class FieldError : public std::invalid_argument
{
public:
    using std::invalid_argument::invalid_argument;
};

//! Reads fields; fields that nobody asks for are ignored.
class FieldReader
{
public:
    explicit FieldReader(nvinfer1::PluginFieldCollection const* fields);

    int32_t integer(char const* name) const;
    int32_t integerOr(char const* name, int32_t missing) const;
    float number(char const* name) const;
    std::vector<int32_t> integers(char const* name) const;
    std::vector<float> numbers(char const* name) const;

private:
    nvinfer1::PluginField const* lookFor(char const* name) const;
    nvinfer1::PluginField const& find(char const* name, nvinfer1::PluginFieldType type) const;

    nvinfer1::PluginFieldCollection const* mFields;
};

//! Collects fields for serialisation; they point to the values, which must outlive them.
class FieldWriter
{
public:
    void clear();

    void add(char const* name, int32_t const* values, size_t count = 1)
    {
        mFields.emplace_back(name, values, nvinfer1::PluginFieldType::kINT32, static_cast<int32_t>(count));
    }

    void add(char const* name, float const* values, size_t count = 1)
    {
        mFields.emplace_back(name, values, nvinfer1::PluginFieldType::kFLOAT32, static_cast<int32_t>(count));
    }

    nvinfer1::PluginFieldCollection const* collection();

private:
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection{};
};

} // namespace retinaserve
