// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file race_scheduler.cpp
//! \brief Runs the blocks of a launch, a few at a time, their threads in any order.

#include "race_detector.h"

#include <cstring>
#include <sys/mman.h>

namespace detector
{
namespace
{

//! What a fiber does for ever: its part of one block after another.
void live()
{
    while (true)
    {
        machine.body(machine.arguments);
        machine.current->isDone = true;
        ++machine.current->block->finished;
        yield();
    }
}

Fiber* takeFiber()
{
    if (!machine.idle.empty())
    {
        Fiber* const fiber = machine.idle.back();
        machine.idle.pop_back();
        return fiber;
    }
    auto* const fiber = new Fiber; // kept for good
    fiber->stack = mmap(nullptr, kSTACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return fiber;
}

void resume(Fiber& fiber)
{
    machine.current = &fiber;
    if (_setjmp(machine.scheduler) != 0)
    {
        return;
    }
    if (fiber.isStarted)
    {
        _longjmp(fiber.where, 1);
    }
    fiber.isStarted = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kSTACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, live, 0);
    swapcontext(&machine.first, &fiber.context);
}

std::unique_ptr<Block> startBlock(uint32_t number, dim3 grid, uint32_t threads, size_t sharedBytes)
{
    auto block = std::make_unique<Block>();
    block->number = number;
    block->index = dim3(number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y);
    std::memset(block->memory.get(), 0xCD, kSHARED_BYTES);
    block->shared.reset(reinterpret_cast<uintptr_t>(block->memory.get()), sharedBytes);
    for (uint32_t thread = 0; thread < threads; ++thread)
    {
        Fiber* const fiber = takeFiber();
        fiber->isDone = fiber->isWaiting = false;
        fiber->block = block.get();
        fiber->thread = thread;
        fiber->fences = 0;
        fiber->priority = machine.random();
        fiber->own.reset();
        block->fibers.push_back(fiber);
    }
    return block;
}

void passBarrier(Block& block)
{
    for (Fiber* const fiber : block.fibers)
    {
        if (fiber->own)
        {
            block.ordering.learnAll(*fiber->own);
            fiber->own.reset();
        }
        fiber->isWaiting = false;
    }
    block.ballot = block.vote;
    block.vote = 0;
    block.arrived = 0;
    ++block.interval;
}

//! Let some of a block's fibers run for a while, in random order or, now and then changed, by priority.
void runSlice(std::vector<Fiber*>& ready)
{
    if (machine.byPriority)
    {
        Fiber* best = ready[0];
        for (Fiber* const fiber : ready)
        {
            best = fiber->priority > best->priority ? fiber : best;
        }
        if (machine.random() % 64 == 0)
        {
            best->priority = machine.random() >> 1;
        }
        resume(*best);
        return;
    }
    uint32_t const steps = 1 + machine.random() % 64;
    for (uint32_t step = 0; step < steps && !ready.empty(); ++step)
    {
        size_t const chosen = machine.random() % ready.size();
        Fiber* const fiber = ready[chosen];
        resume(*fiber);
        if (fiber->isDone || fiber->isWaiting)
        {
            ready[chosen] = ready.back();
            ready.pop_back();
        }
    }
}

} // namespace

int32_t run(void (*body)(void const*), void const* arguments, dim3 grid, dim3 block, size_t sharedBytes)
{
    uint64_t const total = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
    if (sharedBytes > kSHARED_BYTES || total == 0 || grid.y > 65535 || grid.z > 65535 || block.x > 1024)
    {
        return cudaErrorInvalidValue;
    }
    machine.body = body;
    machine.arguments = arguments;
    ++machine.launch;
    machine.accesses = 0;
    machine.atomics.clear();
    machine.isRunning = true;
    std::vector<uint32_t> order(total);
    for (uint32_t number = 0; number < total; ++number)
    {
        order[number] = number;
        std::swap(order[number], order[machine.random() % (number + 1)]);
    }
    int32_t error = 0;
    std::vector<Fiber*> ready;
    while (error == 0 && (!order.empty() || !machine.resident.empty()))
    {
        while (!order.empty() && machine.resident.size() < kRESIDENT_BLOCKS)
        {
            machine.resident.push_back(startBlock(order.back(), grid, block.x, sharedBytes));
            order.pop_back();
        }
        size_t const chosen = machine.random() % machine.resident.size();
        Block& one = *machine.resident[chosen];
        ready.clear();
        for (Fiber* const fiber : one.fibers)
        {
            if (!fiber->isDone && !fiber->isWaiting)
            {
                ready.push_back(fiber);
            }
        }
        if (!ready.empty())
        {
            runSlice(ready);
        }
        else if (one.finished == block.x)
        {
            machine.idle.insert(machine.idle.end(), one.fibers.begin(), one.fibers.end());
            machine.resident.erase(machine.resident.begin() + static_cast<std::ptrdiff_t>(chosen));
        }
        else if (one.finished != 0)
        {
            fault("a barrier that some threads skip", nullptr, nullptr);
        }
        else
        {
            passBarrier(one);
        }
        if (machine.accesses > kMOST_ACCESSES)
        {
            fault("a loop without an end", nullptr, nullptr);
        }
        error = machine.faults == 0 ? 0 : cudaErrorLaunchFailure;
    }
    machine.resident.clear(); // after an error its fibers are given up
    machine.isRunning = false;
    return error;
}

} // namespace detector
