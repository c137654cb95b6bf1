// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

#include "errors.h"

#include <atomic>
#include <cstdio>

namespace retinaserve
{
namespace
{
std::atomic<nvinfer1::ILoggerFinder*> gFinder{nullptr};
} // namespace

void setFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    gFinder = finder;
}

void logError(char const* plugin, char const* message) noexcept
{
    nvinfer1::ILoggerFinder* const finder = gFinder;
    nvinfer1::ILogger* const logger = finder == nullptr ? nullptr : finder->findLogger();
    if (logger == nullptr)
    {
        std::fprintf(stderr, "%s: %s\n", plugin, message);
        return;
    }
    try
    {
        std::string const text = std::string(plugin) + ": " + message;
        logger->log(nvinfer1::ILogger::Severity::kERROR, text.c_str());
    }
    catch (...)
    {
        logger->log(nvinfer1::ILogger::Severity::kERROR, message);
    }
}

} // namespace retinaserve
