// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file race_detector.cpp
//! \brief Runs kernels concurrently on a CPU and reports races, uninitialised reads and diverging barriers.
//!
//! Every thread is a fiber; a few blocks are resident, and any fiber may be interrupted at any access. For every four
//! bytes of memory the last write and two reads are known. Two accesses of which one writes race unless one is known to
//! happen before the other: by a barrier within a block; between blocks, as PTX has it, by a fence that follows the
//! first, an atomic operation behind that fence, another that reads what it wrote, and a fence behind that. What
//! a thread has or knows is its block's after the next barrier.
//!
//! g++ calls the __tsan functions at the end of this file; the library that defines them usually is not linked. This
//! file itself is not instrumented.

#include "race_detector.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace detector
{

Machine machine;

//! The first fault ends the launch.
void fault(char const* what, void const* caller, Access const* other)
{
    ++machine.faults;
    if (machine.report.size() < 2000)
    {
        char line[300];
        Fiber const& me = *machine.current;
        std::snprintf(line, sizeof(line), "%s at %p: block %u thread %u", what, caller, me.block->number, me.thread);
        machine.report += line;
        if (other != nullptr)
        {
            std::snprintf(
                line, sizeof(line), ", and at %p: block %u thread %u", other->caller, other->block, other->thread);
            machine.report += line;
        }
        machine.report += "\n";
    }
}

bool covers(Knowledge const& known, Access const& access)
{
    auto const found = known.find(access.block);
    if (found == known.end())
    {
        return false;
    }
    if (access.interval < found->second.before)
    {
        return true;
    }
    auto const thread = found->second.threads.find(access.thread);
    return thread != found->second.threads.end() && std::make_pair(access.interval, access.fences) <= thread->second;
}

//! \return whether an access happens before what the current thread does now.
bool isBefore(Access const& access)
{
    Fiber const& me = *machine.current;
    if (access.block == me.block->number)
    {
        return access.interval < me.block->interval || (access.thread == me.thread && !access.bySeveral);
    }
    return covers(me.block->ordering.known, access) || (me.own && covers(me.own->known, access));
}

Region* findRegion(uintptr_t address)
{
    Region& shared = machine.current->block->shared;
    if (shared.contains(address))
    {
        return &shared;
    }
    auto found = machine.global.upper_bound(address);
    if (found == machine.global.begin())
    {
        return nullptr;
    }
    --found;
    return found->second.contains(address) ? &found->second : nullptr;
}

void touch(Cell& cell, bool isRead, bool isWrite, bool isAtomic, void const* caller)
{
    Fiber const& me = *machine.current;
    if (cell.launch != machine.launch)
    {
        bool const isInitialised = cell.isInitialised;
        cell = Cell{};
        cell.isInitialised = isInitialised;
        cell.launch = machine.launch;
    }
    if (isRead && !cell.isInitialised)
    {
        fault("uninitialised", caller, nullptr);
    }
    auto const races
        = [isAtomic](Access const& other) { return other.exists && !(isAtomic && other.isAtomic) && !isBefore(other); };
    if (races(cell.write))
    {
        fault("race with a write", caller, &cell.write);
    }
    Access now{true, isAtomic, false, me.block->number, me.thread, me.block->interval, me.fences, caller};
    if (isWrite)
    {
        for (Access const& read : cell.reads)
        {
            if (races(read))
            {
                fault("race with a read", caller, &read);
            }
        }
        cell.write = now;
        cell.isInitialised = true;
    }
    if (isRead)
    {
        bool const isOther = cell.reads[0].exists && cell.reads[0].block != now.block;
        Access& read = cell.reads[isOther ? 1 : 0];
        if (read.exists && read.block == now.block && read.interval == now.interval)
        {
            now.bySeveral = read.bySeveral || read.thread != now.thread;
            now.isAtomic = read.isAtomic && isAtomic;
        }
        read = now;
    }
}

void yield()
{
    if (_setjmp(machine.current->where) == 0)
    {
        _longjmp(machine.scheduler, 1);
    }
}

void access(void const* place, size_t bytes, bool isRead, bool isWrite, bool isAtomic, void const* caller)
{
    if (!machine.isRunning)
    {
        return;
    }
    uintptr_t const address = reinterpret_cast<uintptr_t>(place);
    Region* const region = findRegion(address);
    if (region == nullptr)
    {
        return; // the fiber's own stack, and the arguments
    }
    ++machine.accesses;
    if (machine.random() % machine.interruptions == 0)
    {
        yield();
    }
    for (uintptr_t each = address & ~static_cast<uintptr_t>(3); each < address + bytes; each += 4)
    {
        if (!region->contains(each))
        {
            fault("outside its array", caller, nullptr);
            return;
        }
        touch(region->cells[(each - region->first) / 4], isRead, isWrite, isAtomic, caller);
    }
}

template <typename Call>
void forRegion(void const* memory, Call const& call)
{
    uintptr_t const address = reinterpret_cast<uintptr_t>(memory);
    auto found = machine.global.upper_bound(address);
    if (found != machine.global.begin() && (--found)->second.contains(address))
    {
        call(found->second, address);
    }
}

bool isRemoved(char const* file, int32_t line)
{
    if (line != machine.removedLine)
    {
        return false;
    }
    char const* const slash = std::strrchr(file, '/');
    return machine.removedFile == (slash == nullptr ? file : slash + 1);
}

void barrier()
{
    machine.current->isWaiting = true;
    ++machine.current->block->arrived;
    yield();
}

int32_t barrierOr(int32_t value)
{
    Block* const block = machine.current->block;
    block->vote |= value;
    barrier();
    return block->ballot;
}

void fence()
{
    Fiber& me = *machine.current;
    Ordering& own = me.ordering();
    Block& block = *me.block;
    learn(own.known, block.ordering.pending);
    learn(own.known, own.pending);
    Covered& mine = own.released[block.number];
    mine.before = block.interval;
    mine.threads[me.thread] = {block.interval, me.fences};
    learn(own.released, block.ordering.known);
    learn(own.released, own.known);
    ++me.fences;
}

void atomic(void const* place, size_t bytes, void const* caller)
{
    access(place, bytes, true, true, true, caller);
    Fiber& me = *machine.current;
    if (me.block->shared.contains(reinterpret_cast<uintptr_t>(place)))
    {
        return;
    }
    Knowledge& passed = machine.atomics[place];
    learn(passed, me.block->ordering.released);
    if (me.own)
    {
        learn(passed, me.own->released);
    }
    if (!passed.empty())
    {
        learn(me.ordering().pending, passed);
    }
}

void plain(void const* place, size_t bytes, bool isWrite, void const* caller)
{
    access(place, bytes, !isWrite, isWrite, false, caller);
}

uint32_t thread()
{
    return machine.current->thread;
}

dim3 block()
{
    return machine.current->block->index;
}

void* sharedMemory()
{
    return machine.current->block->memory.get();
}

void clear(void* memory, size_t bytes)
{
    std::memset(memory, 0, bytes);
    forRegion(memory, [bytes](Region& region, uintptr_t address) { region.initialise(address, bytes); });
}

} // namespace detector

using detector::forRegion;
using detector::kALIGNMENT;
using detector::machine;
using detector::Region;

extern "C"
{

//! \param seed of the order of everything. \param interruptions one access in so many.
void detectorConfigure(uint32_t seed, uint32_t interruptions, int32_t byPriority)
{
    machine.random.seed(seed);
    machine.interruptions = interruptions;
    machine.byPriority = byPriority != 0;
}

//! Take the barrier, fence or atomicity in this line away.
void detectorRemove(char const* file, int32_t line)
{
    machine.removedFile = file;
    machine.removedLine = line;
}

//! \return what was found so far, a line each.
char const* detectorReport()
{
    return machine.report.c_str();
}

int32_t retinaserveAllocate(void** memory, size_t bytes)
{
    size_t const rounded = (bytes + kALIGNMENT) / kALIGNMENT * kALIGNMENT;
    *memory = std::aligned_alloc(kALIGNMENT, rounded);
    std::memset(*memory, 0xA5, rounded);
    uintptr_t const address = reinterpret_cast<uintptr_t>(*memory);
    machine.global[address].reset(address, bytes);
    return 0;
}

int32_t retinaserveFree(void* memory)
{
    machine.global.erase(reinterpret_cast<uintptr_t>(memory));
    std::free(memory);
    return 0;
}

int32_t retinaserveToDevice(void* device, void const* host, size_t bytes)
{
    std::memcpy(device, host, bytes);
    forRegion(device, [bytes](Region& region, uintptr_t address) { region.initialise(address, bytes); });
    return 0;
}

int32_t retinaserveToHost(void* host, void const* device, size_t bytes)
{
    std::memcpy(host, device, bytes);
    return 0;
}

#define RETINASERVE_ACCESS(name, isWrite, bytes)                                                                       \
    void __tsan_##name(void* place)                                                                                    \
    {                                                                                                                  \
        detector::access(place, bytes, !isWrite, isWrite, false, __builtin_return_address(0));                         \
    }
#define RETINASERVE_ACCESSES(bytes)                                                                                    \
    RETINASERVE_ACCESS(read##bytes, false, bytes)                                                                      \
    RETINASERVE_ACCESS(write##bytes, true, bytes)                                                                      \
    RETINASERVE_ACCESS(unaligned_read##bytes, false, bytes)                                                            \
    RETINASERVE_ACCESS(unaligned_write##bytes, true, bytes)
RETINASERVE_ACCESSES(1)
RETINASERVE_ACCESSES(2)
RETINASERVE_ACCESSES(4)
RETINASERVE_ACCESSES(8)
RETINASERVE_ACCESSES(16)

void __tsan_read_range(void* place, size_t bytes)
{
    detector::access(place, bytes, true, false, false, __builtin_return_address(0));
}

void __tsan_write_range(void* place, size_t bytes)
{
    detector::access(place, bytes, false, true, false, __builtin_return_address(0));
}

void __tsan_func_entry(void*)
{
}

void __tsan_func_exit()
{
}

void __tsan_init()
{
}

} // extern "C"
