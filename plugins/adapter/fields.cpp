// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

#include "fields.h"

#include <cstring>
#include <string>

namespace retinaserve
{
namespace
{

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

char const* typeName(PluginFieldType type)
{
    switch (type)
    {
    case PluginFieldType::kFLOAT16: return "FLOAT16";
    case PluginFieldType::kFLOAT32: return "FLOAT32";
    case PluginFieldType::kFLOAT64: return "FLOAT64";
    case PluginFieldType::kINT8: return "INT8";
    case PluginFieldType::kINT16: return "INT16";
    case PluginFieldType::kINT32: return "INT32";
    case PluginFieldType::kINT64: return "INT64";
    case PluginFieldType::kCHAR: return "CHAR";
    default: return "another type";
    }
}

std::string quoted(char const* name)
{
    return std::string("field '") + name + "'";
}

template <typename T>
std::vector<T> valuesOf(PluginField const& field)
{
    std::vector<T> values(static_cast<size_t>(field.length));
    std::memcpy(values.data(), field.data, values.size() * sizeof(T));
    return values;
}

template <typename T>
T valueOf(PluginField const& field)
{
    if (field.length != 1)
    {
        throw FieldError(quoted(field.name) + " has " + std::to_string(field.length) + " values, but 1 is expected");
    }
    return valuesOf<T>(field).front();
}

} // namespace

FieldReader::FieldReader(nvinfer1::PluginFieldCollection const* fields)
    : mFields(fields)
{
    if (fields == nullptr || (fields->nbFields > 0 && fields->fields == nullptr))
    {
        throw FieldError("no fields are given");
    }
}

PluginField const* FieldReader::lookFor(char const* name) const
{
    for (int32_t i = 0; i < mFields->nbFields; ++i)
    {
        PluginField const& field = mFields->fields[i];
        if (field.name != nullptr && std::strcmp(field.name, name) == 0)
        {
            return &field;
        }
    }
    return nullptr;
}

PluginField const& FieldReader::find(char const* name, PluginFieldType type) const
{
    PluginField const* const field = lookFor(name);
    if (field == nullptr)
    {
        throw FieldError(quoted(name) + " is missing");
    }
    if (field->type != type)
    {
        throw FieldError(quoted(name) + " is " + typeName(field->type) + ", but " + typeName(type) + " is expected");
    }
    if (field->length < 1 || field->data == nullptr)
    {
        throw FieldError(quoted(name) + " is empty");
    }
    return *field;
}

int32_t FieldReader::integer(char const* name) const
{
    return valueOf<int32_t>(find(name, PluginFieldType::kINT32));
}

int32_t FieldReader::integerOr(char const* name, int32_t missing) const
{
    return lookFor(name) == nullptr ? missing : integer(name);
}

float FieldReader::number(char const* name) const
{
    return valueOf<float>(find(name, PluginFieldType::kFLOAT32));
}

std::vector<int32_t> FieldReader::integers(char const* name) const
{
    return valuesOf<int32_t>(find(name, PluginFieldType::kINT32));
}

std::vector<float> FieldReader::numbers(char const* name) const
{
    return valuesOf<float>(find(name, PluginFieldType::kFLOAT32));
}

void FieldWriter::clear()
{
    mFields.clear();
}

nvinfer1::PluginFieldCollection const* FieldWriter::collection()
{
    mCollection.nbFields = static_cast<int32_t>(mFields.size());
    mCollection.fields = mFields.data();
    return &mCollection;
}

} // namespace retinaserve
