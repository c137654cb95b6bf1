// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file expectation.h
//! \brief What the harness does where something is not as it should be.

#pragma once

#include <stdexcept>
#include <string>

namespace retinaserve
{

inline void expect(bool condition, std::string const& message)
{
    if (!condition)
    {
        throw std::runtime_error(message);
    }
}

} // namespace retinaserve
