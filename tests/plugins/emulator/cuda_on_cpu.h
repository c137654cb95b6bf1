// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file cuda_on_cpu.h
//! \brief Enough of CUDA for the kernels of plugins/kernels to run on a CPU, compiled by g++ (native.py).
//!
//! Blocks run one after another, the threads of a block as fibers that switch at barriers only. The order of blocks
//! and, between two barriers, of threads is forwards, backwards or shuffled (setSchedule), so that a missing barrier
//! or a result that depends on who is first can show. A barrier that some threads skip is an error; shared memory
//! starts as garbage in every block.
//!
//! It proves the algorithm, not the memory model: nothing runs at the same time here, atomics and fences are trivially
//! right, and warps do not exist.

#pragma once

#include "cuda_types.h"

#include <algorithm>
#include <csetjmp>
#include <memory>
#include <numeric>
#include <random>
#include <ucontext.h>
#include <vector>

namespace shim
{

constexpr size_t kSTACK_BYTES = 64 * 1024;
constexpr size_t kSHARED_BYTES = 48 * 1024; // what a block gets without asking

struct Fiber
{
    ucontext_t context;
    jmp_buf where;
    std::unique_ptr<char[]> stack;
    bool isStarted{false};
    bool isDone{false};
};

struct Machine
{
    std::vector<Fiber> fibers;
    jmp_buf scheduler;
    ucontext_t first;
    uint32_t running{0};
    int vote{0};
    int ballot{0};
    void (*body)(void const*){nullptr};
    void const* arguments{nullptr};
    uint32_t schedule{0}; //!< 0: forwards, 1: backwards, else a seed
    std::mt19937 random{1};
    alignas(256) unsigned char shared[kSHARED_BYTES];

    static Machine& get()
    {
        static Machine machine;
        return machine;
    }

    std::vector<uint32_t> order(uint32_t count)
    {
        std::vector<uint32_t> numbers(count);
        std::iota(numbers.begin(), numbers.end(), 0U);
        if (schedule == 1)
        {
            std::reverse(numbers.begin(), numbers.end());
        }
        else if (schedule > 1)
        {
            std::shuffle(numbers.begin(), numbers.end(), random);
        }
        return numbers;
    }

    void yield()
    {
        if (_setjmp(fibers[running].where) == 0)
        {
            _longjmp(scheduler, 1);
        }
    }

    //! What a fiber does for ever: its part of one block after another.
    static void run()
    {
        Machine& machine = get();
        while (true)
        {
            machine.body(machine.arguments);
            machine.fibers[machine.running].isDone = true;
            machine.yield();
        }
    }

    void resume(uint32_t thread)
    {
        running = thread;
        Fiber& fiber = fibers[thread];
        if (_setjmp(scheduler) != 0)
        {
            return;
        }
        if (fiber.isStarted)
        {
            _longjmp(fiber.where, 1);
        }
        fiber.isStarted = true;
        fiber.stack = std::make_unique<char[]>(kSTACK_BYTES);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kSTACK_BYTES;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, &Machine::run, 0);
        swapcontext(&first, &fiber.context);
    }
};

inline void setSchedule(uint32_t schedule)
{
    Machine::get().schedule = schedule;
    Machine::get().random.seed(schedule);
}

} // namespace shim

inline dim3 threadIdx;
inline dim3 blockIdx;
inline dim3 blockDim;
inline dim3 gridDim;

namespace shim
{

//! \return 0, or an error where threads skipped a barrier. The fibers of such a block are given up.
inline int32_t runBlock(uint32_t threads)
{
    Machine& machine = Machine::get();
    if (machine.fibers.size() < threads)
    {
        machine.fibers.resize(threads);
    }
    std::memset(machine.shared, 0xCD, sizeof(machine.shared));
    uint32_t done = 0;
    while (done < threads)
    {
        machine.vote = 0;
        done = 0;
        for (uint32_t const thread : machine.order(threads))
        {
            threadIdx = dim3(thread);
            machine.resume(thread);
            done += machine.fibers[thread].isDone ? 1 : 0;
        }
        machine.ballot = machine.vote;
        if (done != 0 && done != threads)
        {
            machine.fibers.clear();
            return cudaErrorLaunchFailure;
        }
    }
    for (uint32_t thread = 0; thread < threads; ++thread)
    {
        machine.fibers[thread].isDone = false;
    }
    return 0;
}

} // namespace shim

inline void __syncthreads()
{
    shim::Machine::get().yield();
}

inline int __syncthreads_or(int value)
{
    shim::Machine::get().vote |= value;
    shim::Machine::get().yield();
    return shim::Machine::get().ballot;
}

inline void __threadfence()
{
}

template <typename T>
inline T atomicAdd(T* place, T value)
{
    T const before = *place;
    *place += value;
    return before;
}

template <typename T>
inline T atomicMax(T* place, T value)
{
    T const before = *place;
    *place = before < value ? value : before;
    return before;
}

template <typename T>
inline T atomicOr(T* place, T value)
{
    T const before = *place;
    *place |= value;
    return before;
}

template <typename T>
inline T atomicExch(T* place, T value)
{
    T const before = *place;
    *place = value;
    return before;
}

namespace retinaserve
{

template <typename T>
inline T& dynamicShared()
{
    return *reinterpret_cast<T*>(shim::Machine::get().shared);
}

template <typename Arguments>
inline int32_t launch(void (*kernel)(Arguments const), dim3 grid, dim3 block, size_t sharedBytes, cudaStream_t,
    Arguments const& arguments)
{
    if (sharedBytes > shim::kSHARED_BYTES || grid.x * grid.y * grid.z == 0)
    {
        return cudaErrorInvalidValue;
    }
    Launch<Arguments> const call{kernel, &arguments};
    shim::Machine& machine = shim::Machine::get();
    machine.arguments = &call;
    machine.body = Launch<Arguments>::run;
    gridDim = grid;
    blockDim = block;
    for (uint32_t const number : machine.order(grid.x * grid.y * grid.z))
    {
        blockIdx = dim3(number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y);
        if (int32_t const error = shim::runBlock(block.x))
        {
            return error;
        }
    }
    return 0;
}

inline int32_t clear(void* memory, size_t bytes, cudaStream_t)
{
    std::memset(memory, 0, bytes);
    return 0;
}

} // namespace retinaserve
