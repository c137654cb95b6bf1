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

#include "cuda_with_races.h"

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <unordered_map>
#include <utility>
#include <vector>

namespace
{

constexpr size_t kSTACK_BYTES = 48 * 1024;
constexpr size_t kSHARED_BYTES = 48 * 1024;
constexpr size_t kALIGNMENT = 256;
constexpr uint32_t kRESIDENT_BLOCKS = 6;
constexpr uint64_t kMOST_ACCESSES = 1ULL << 26; //!< of a launch: a removed barrier may leave a loop without an end

//! What is known of a block: all of its accesses before an interval, and of single threads those up to a fence. An
//! interval is the number of barriers that the block has passed.
struct Covered
{
    uint32_t before{0};
    std::map<uint32_t, std::pair<uint32_t, uint32_t>> threads; //!< thread: interval and fences, both included
};
using Knowledge = std::map<uint32_t, Covered>; //!< by block

void learn(Knowledge& known, Knowledge const& other)
{
    for (auto const& [block, covered] : other)
    {
        Covered& mine = known[block];
        mine.before = std::max(mine.before, covered.before);
        for (auto const& [thread, upTo] : covered.threads)
        {
            mine.threads[thread] = std::max(mine.threads[thread], upTo);
        }
    }
}

//! Who accessed something, and when.
struct Access
{
    bool exists{false};
    bool isAtomic{false};
    bool bySeveral{false}; //!< threads of the block in the same interval
    uint32_t block{0};
    uint32_t thread{0};
    uint32_t interval{0};
    uint32_t fences{0};
    void const* caller{nullptr};
};

//! Four bytes.
struct Cell
{
    uint32_t launch{0}; //!< accesses of earlier launches are forgotten
    bool isInitialised{false};
    Access write;
    Access reads[2]; //!< of two blocks, if there were two
};

struct Region
{
    uintptr_t first{0};
    size_t bytes{0};
    std::vector<Cell> cells;

    bool contains(uintptr_t address) const
    {
        return address >= first && address < first + bytes;
    }

    void reset(uintptr_t address, size_t size)
    {
        first = address;
        bytes = size;
        cells.assign((size + 3) / 4, Cell{});
    }

    void initialise(uintptr_t address, size_t size)
    {
        for (uintptr_t each = address; each < address + size; each += 4)
        {
            cells[(each - first) / 4].isInitialised = true;
        }
    }
};

//! What a thread or a block brings over a barrier.
struct Ordering
{
    Knowledge released; //!< by its fences: what an atomic operation passes on
    Knowledge pending;  //!< met by atomic operations: known after a fence
    Knowledge known;

    void learnAll(Ordering const& other)
    {
        learn(released, other.released);
        learn(pending, other.pending);
        learn(known, other.known);
    }
};

struct Block;

struct Fiber
{
    ucontext_t context;
    jmp_buf where;
    void* stack{nullptr};
    bool isStarted{false};
    bool isDone{false};
    bool isWaiting{false};
    Block* block{nullptr};
    uint32_t thread{0};
    uint32_t fences{0};
    uint32_t priority{0};
    std::unique_ptr<Ordering> own; //!< since the last barrier; few threads have any

    Ordering& ordering()
    {
        if (!own)
        {
            own = std::make_unique<Ordering>();
        }
        return *own;
    }
};

struct Block
{
    uint32_t number{0};
    dim3 index;
    uint32_t interval{0};
    uint32_t arrived{0};
    uint32_t finished{0};
    int32_t vote{0};
    int32_t ballot{0};
    Region shared;
    std::unique_ptr<char, decltype(&std::free)> memory{
        static_cast<char*>(std::aligned_alloc(kALIGNMENT, kSHARED_BYTES)), &std::free};
    std::vector<Fiber*> fibers;
    Ordering ordering;
};

struct Machine
{
    std::vector<std::unique_ptr<Block>> resident;
    std::vector<Fiber*> idle;
    Fiber* current{nullptr};
    jmp_buf scheduler;
    ucontext_t first;
    void (*body)(void const*){nullptr};
    void const* arguments{nullptr};
    uint32_t launch{0};
    bool isRunning{false};
    uint64_t accesses{0};
    std::map<uintptr_t, Region> global;
    std::unordered_map<void const*, Knowledge> atomics; //!< what those who access a place pass on
    // Chosen by detectorConfigure.
    std::mt19937 random{1};
    uint32_t interruptions{8}; //!< one access in so many is interrupted
    bool byPriority{false};
    std::string removedFile;
    int32_t removedLine{0};
    // Found.
    uint64_t faults{0};
    std::string report;
};
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

} // namespace

namespace detector
{

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
        access(place, bytes, !isWrite, isWrite, false, __builtin_return_address(0));                                   \
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
    access(place, bytes, true, false, false, __builtin_return_address(0));
}

void __tsan_write_range(void* place, size_t bytes)
{
    access(place, bytes, false, true, false, __builtin_return_address(0));
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
