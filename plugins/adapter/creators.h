// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file creators.h
//! \brief What a TensorRT plugin library exports: its creators, and where they find a logger.

#pragma once

#include <NvInferRuntime.h>

#if defined(_WIN32)
#define RETINASERVE_EXPORT __declspec(dllexport)
#else
#define RETINASERVE_EXPORT __attribute__((visibility("default")))
#endif

extern "C" RETINASERVE_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators);
extern "C" RETINASERVE_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder);
