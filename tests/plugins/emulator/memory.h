// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file memory.h
//! \brief Memory where the kernels run (memory.cpp), with a guard behind it, and what happens where one is not met.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

extern "C"
{

int32_t retinaserveAllocate(void** memory, size_t bytes);
int32_t retinaserveFree(void* memory);
int32_t retinaserveToDevice(void* device, void const* host, size_t bytes);
int32_t retinaserveToHost(void* host, void const* device, size_t bytes);

} // extern "C"

namespace retinaserve
{

inline void expect(bool condition, std::string const& message)
{
    if (!condition)
    {
        throw std::runtime_error(message);
    }
}

constexpr uint8_t kGARBAGE = 0xA5;
constexpr size_t kGUARD = 256;

//! Device memory with a guard behind it.
class Memory
{
public:
    explicit Memory(size_t bytes)
        : mHost(bytes + kGUARD, kGARBAGE)
    {
        expect(retinaserveAllocate(&mDevice, mHost.size()) == 0, "no device memory");
        fill();
    }

    Memory(Memory const&) = delete;

    ~Memory()
    {
        retinaserveFree(mDevice);
    }

    //! Garbage everywhere, then the data, if there is any.
    void fill(void const* data = nullptr)
    {
        std::fill(mHost.begin(), mHost.end(), kGARBAGE);
        if (data != nullptr)
        {
            std::memcpy(mHost.data(), data, mHost.size() - kGUARD);
        }
        expect(retinaserveToDevice(mDevice, mHost.data(), mHost.size()) == 0, "copy to the device failed");
    }

    std::vector<uint8_t> const& read()
    {
        expect(retinaserveToHost(mHost.data(), mDevice, mHost.size()) == 0, "copy from the device failed");
        for (size_t i = mHost.size() - kGUARD; i < mHost.size(); ++i)
        {
            expect(mHost[i] == kGARBAGE, "enqueue wrote behind its memory");
        }
        return mHost;
    }

    void* device() const
    {
        return mDevice;
    }

private:
    std::vector<uint8_t> mHost;
    void* mDevice{nullptr};
};

} // namespace retinaserve
