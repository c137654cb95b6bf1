// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file errors.h
//! \brief Expectations, the way out of `noexcept` methods for what they throw, and TensorRT's logger.

#pragma once

#include <NvInferRuntime.h>

#include <stdexcept>
#include <string>

namespace retinaserve
{

//! Remember where TensorRT's logger is to be found.
void setFinder(nvinfer1::ILoggerFinder* finder) noexcept;

//! Log an error; to stderr where TensorRT has given no logger, since a failure must not go unsaid.
void logError(char const* plugin, char const* message) noexcept;

//! \throws std::invalid_argument unless the condition holds. Nothing is allocated where it does.
inline void expect(bool condition, char const* message, int32_t level = -1)
{
    if (!condition)
    {
        throw std::invalid_argument((level < 0 ? "" : "level " + std::to_string(level) + ": ") + message);
    }
}

//! \return what the action returns, or `failure` after logging what it threw.
template <typename Result, typename Action>
Result guarded(char const* plugin, Result failure, Action const& action) noexcept
{
    try
    {
        return action();
    }
    catch (std::exception const& error)
    {
        logError(plugin, error.what());
    }
    catch (...)
    {
        logError(plugin, "unknown exception");
    }
    return failure;
}

} // namespace retinaserve
