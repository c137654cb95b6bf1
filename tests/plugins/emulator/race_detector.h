// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file race_detector.h
//! \brief What the race detector knows: of memory, of threads, and of who is before whom.

#pragma once

#include "cuda_with_races.h"

#include <csetjmp>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <ucontext.h>
#include <unordered_map>
#include <utility>
#include <vector>

namespace detector
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

inline void learn(Knowledge& known, Knowledge const& other)
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
extern Machine machine;

void fault(char const* what, void const* caller, Access const* other);

//! Let another fiber run.
void yield();

} // namespace detector
