// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file harness.cpp
//! \brief Takes a plugin of a plugin library through its whole life, as TensorRT would, without TensorRT's runtime.
//!
//! Find its creator, create, negotiate formats and shapes, configure, clone, serialise, create again from what was
//! serialised, attach, enqueue: plainly, or captured in a CUDA graph that is launched twice. With RETINASERVE_CUDA
//! the plugins' kernels are emulated. tests/plugins/test_adapter.py calls harnessRun.

#include "memory.h"
#include "runtime.h"

#include <NvInferRuntime.h>

#include <dlfcn.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifndef RETINASERVE_CUDA
#include <cuda_runtime_api.h>
#endif

using namespace nvinfer1;
using namespace retinaserve;

extern "C"
{

//! A tensor on the host; the first dimension is the batch.
struct HarnessTensor
{
    int32_t type;   //!< nvinfer1::DataType
    int32_t format; //!< nvinfer1::TensorFormat
    int32_t nbDims;
    int64_t dims[8];
    void* data;
};

} // extern "C"

namespace
{

size_t elementBytes(int32_t type)
{
    return static_cast<DataType>(type) == DataType::kHALF ? 2 : 4;
}

size_t bytesOf(HarnessTensor const& tensor)
{
    size_t bytes = elementBytes(tensor.type);
    for (int32_t d = 0; d < tensor.nbDims; ++d)
    {
        bool const isFilled = d == 1 && static_cast<TensorFormat>(tensor.format) == TensorFormat::kHWC8;
        bytes *= static_cast<size_t>(isFilled ? (tensor.dims[d] + 7) / 8 * 8 : tensor.dims[d]);
    }
    return bytes;
}

Dims dimsOf(HarnessTensor const& tensor, int64_t batch)
{
    Dims dims{};
    dims.nbDims = tensor.nbDims;
    for (int32_t d = 0; d < tensor.nbDims; ++d)
    {
        dims.d[d] = d == 0 ? batch : tensor.dims[d];
    }
    return dims;
}

PluginTensorDesc describe(HarnessTensor const& tensor, int64_t batch)
{
    PluginTensorDesc made{};
    made.dims = dimsOf(tensor, batch);
    made.type = static_cast<DataType>(tensor.type);
    made.format = static_cast<TensorFormat>(tensor.format);
    return made;
}

struct Deleter
{
    void operator()(IPluginV3* plugin) const
    {
        delete plugin;
    }
};
using Plugin = std::unique_ptr<IPluginV3, Deleter>;

template <typename Interface>
Interface& capability(IPluginV3& plugin, PluginCapabilityType type)
{
    auto* const found = plugin.getCapabilityInterface(type);
    expect(found != nullptr, "a capability interface is missing");
    return *static_cast<Interface*>(found);
}

class Run
{
public:
    Run(HarnessTensor const* inputs, int32_t nbInputs, HarnessTensor* outputs, int32_t nbOutputs, int64_t maxBatch)
        : mInputs(inputs, inputs + nbInputs)
        , mOutputs(outputs, outputs + nbOutputs)
        , mMaxBatch(maxBatch)
    {
        for (auto const* tensors : {&mInputs, &mOutputs})
        {
            for (HarnessTensor const& tensor : *tensors)
            {
                DynamicPluginTensorDesc desc{};
                desc.desc = describe(tensor, -1);
                desc.min = dimsOf(tensor, 1);
                desc.opt = dimsOf(tensor, tensor.dims[0]);
                desc.max = dimsOf(tensor, maxBatch);
                mDynamic.push_back(desc);
            }
        }
    }

    //! What the builder asks. \return the workspace's bytes.
    size_t build(IPluginV3& plugin)
    {
        auto& build = capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
        expect(build.getNbOutputs() == nbOutputs(), "another number of outputs");
        checkTypes(build);
        checkFormats(build);
        checkShapes(build);
        auto const* const out = mDynamic.data() + nbInputs();
        expect(build.configurePlugin(mDynamic.data(), nbInputs(), out, nbOutputs()) == 0, "configurePlugin failed");
        size_t const most = build.getWorkspaceSize(mDynamic.data(), nbInputs(), out, nbOutputs());
        auto smaller = mDynamic;
        for (auto& desc : smaller)
        {
            desc.max = desc.opt;
        }
        size_t const now = build.getWorkspaceSize(smaller.data(), nbInputs(), smaller.data() + nbInputs(), nbOutputs());
        expect(now <= most, "a smaller batch needs more workspace");
        return most;
    }

    //! What an execution context does: twice, since the second time must give the same; and so must another plugin.
    //! \return whether the workspace was cleared first.
    bool execute(IPluginV3& plugin, size_t workspaceBytes, bool inGraph)
    {
        auto& runtime = capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
        std::vector<PluginTensorDesc> in;
        std::vector<PluginTensorDesc> out;
        std::vector<std::unique_ptr<Memory>> memory;
        std::vector<void const*> inPointers;
        std::vector<void*> outPointers;
        for (HarnessTensor const& tensor : mInputs)
        {
            in.push_back(describe(tensor, tensor.dims[0]));
            memory.push_back(std::make_unique<Memory>(bytesOf(tensor)));
            memory.back()->fill(tensor.data);
            inPointers.push_back(memory.back()->device());
        }
        for (HarnessTensor const& tensor : mOutputs)
        {
            out.push_back(describe(tensor, tensor.dims[0]));
            memory.push_back(std::make_unique<Memory>(bytesOf(tensor)));
            outPointers.push_back(memory.back()->device());
        }
        Memory workspace(workspaceBytes);
        int32_t const change = runtime.onShapeChange(in.data(), nbInputs(), out.data(), nbOutputs());
        expect(change == 0, "onShapeChange failed");
        auto const enqueue = [&](cudaStream_t stream)
        {
            int32_t const error = runtime.enqueue(
                in.data(), out.data(), inPointers.data(), outPointers.data(), workspace.device(), stream);
            expect(error == 0, "enqueue failed");
        };
        bool isCleared = false;
        auto const collect = [&]
        {
            isCleared = workspace.read().front() == 0;
            Results results;
            for (int32_t i = 0; i < nbOutputs(); ++i)
            {
                Memory& output = *memory[static_cast<size_t>(nbInputs() + i)];
                results.push_back(output.read());
                output.fill();
            }
            workspace.fill();
            return results;
        };
        auto const results = inGraph ? runGraph(enqueue, collect) : runPlain(enqueue, collect);
        expect(results.first == results.second, "the second enqueue gave something else");
        expect(mSeen.empty() || mSeen == results.first, "another plugin gave something else");
        mSeen = results.first;
        for (int32_t i = 0; i < nbOutputs(); ++i)
        {
            HarnessTensor const& output = mOutputs[static_cast<size_t>(i)];
            std::memcpy(output.data, results.first[static_cast<size_t>(i)].data(), bytesOf(output));
        }
        return isCleared;
    }

private:
    using Results = std::vector<std::vector<uint8_t>>; //!< the bytes of every output
    using TwoResults = std::pair<Results, Results>;

    template <typename Enqueue, typename Collect>
    static TwoResults runPlain(Enqueue const& enqueue, Collect const& collect)
    {
        enqueue(nullptr);
        auto const first = collect();
        enqueue(nullptr);
        return std::make_pair(first, collect());
    }

#ifdef RETINASERVE_CUDA
    template <typename Enqueue, typename Collect>
    static TwoResults runGraph(Enqueue const&, Collect const&)
    {
        throw std::runtime_error("there are no CUDA graphs without a GPU");
    }
#else
    static void check(cudaError_t error)
    {
        expect(error == cudaSuccess, std::string("CUDA: ") + cudaGetErrorString(error));
    }

    template <typename Enqueue, typename Collect>
    static TwoResults runGraph(Enqueue const& enqueue, Collect const& collect)
    {
        cudaStream_t stream{};
        cudaGraph_t graph{};
        cudaGraphExec_t ready{};
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        enqueue(stream);
        check(cudaStreamEndCapture(stream, &graph));
        check(cudaGraphInstantiate(&ready, graph, 0));
        auto const replay = [&]
        {
            check(cudaGraphLaunch(ready, stream));
            check(cudaStreamSynchronize(stream));
            return collect();
        };
        auto const first = replay();
        auto const second = replay();
        check(cudaGraphExecDestroy(ready));
        check(cudaGraphDestroy(graph));
        check(cudaStreamDestroy(stream));
        return std::make_pair(first, second);
    }
#endif

    void checkTypes(IPluginV3OneBuild& build) const
    {
        std::vector<DataType> inTypes;
        for (HarnessTensor const& tensor : mInputs)
        {
            inTypes.push_back(static_cast<DataType>(tensor.type));
        }
        std::vector<DataType> outTypes(mOutputs.size());
        int32_t const error = build.getOutputDataTypes(outTypes.data(), nbOutputs(), inTypes.data(), nbInputs());
        expect(error == 0, "getOutputDataTypes failed");
        for (size_t i = 0; i < mOutputs.size(); ++i)
        {
            expect(outTypes[i] == static_cast<DataType>(mOutputs[i].type), "an output has another type");
        }
    }

    void checkFormats(IPluginV3OneBuild& build) const
    {
        for (int32_t pos = 0; pos < nbInputs() + nbOutputs(); ++pos)
        {
            auto const isSupported = [&](DataType type, TensorFormat format)
            {
                auto descs = mDynamic;
                descs[static_cast<size_t>(pos)].desc.type = type;
                descs[static_cast<size_t>(pos)].desc.format = format;
                return build.supportsFormatCombination(pos, descs.data(), nbInputs(), nbOutputs());
            };
            DataType const type = mDynamic[static_cast<size_t>(pos)].desc.type;
            TensorFormat const format = mDynamic[static_cast<size_t>(pos)].desc.format;
            std::string const where = " at position " + std::to_string(pos);
            expect(isSupported(type, format), "the tensors' own format is refused" + where);
            for (TensorFormat const other : {TensorFormat::kLINEAR, TensorFormat::kHWC8, TensorFormat::kHWC})
            {
                expect(pos == 0 || other == format || !isSupported(type, other), "two formats are mixed" + where);
            }
            expect(!isSupported(DataType::kFLOAT, TensorFormat::kHWC8), "FP32 in vectors is accepted" + where);
            expect(!isSupported(DataType::kHALF, TensorFormat::kHWC), "FP16 without vectors is accepted" + where);
            expect(!isSupported(type, TensorFormat::kCHW4), "a vectorised format is accepted" + where);
            expect(!isSupported(DataType::kINT8, TensorFormat::kLINEAR), "INT8 is accepted" + where);
        }
    }

    void checkShapes(IPluginV3OneBuild& build) const
    {
        Expressions builder;
        Expression const batch(-1);
        std::vector<DimsExprs> in(mInputs.size());
        for (size_t i = 0; i < mInputs.size(); ++i)
        {
            in[i].nbDims = mInputs[i].nbDims;
            for (int32_t d = 0; d < mInputs[i].nbDims; ++d)
            {
                in[i].d[d] = d == 0 ? &batch : builder.constant(mInputs[i].dims[d]);
            }
        }
        std::vector<DimsExprs> out(mOutputs.size());
        int32_t const error
            = build.getOutputShapes(in.data(), nbInputs(), nullptr, 0, out.data(), nbOutputs(), builder);
        expect(error == 0, "getOutputShapes failed");
        for (size_t i = 0; i < mOutputs.size(); ++i)
        {
            expect(out[i].nbDims == mOutputs[i].nbDims, "an output has another number of dimensions");
            expect(out[i].d[0] == &batch, "an output's first dimension is not the batch");
            for (int32_t d = 1; d < out[i].nbDims; ++d)
            {
                expect(out[i].d[d]->isConstant() && out[i].d[d]->getConstantValue() == mOutputs[i].dims[d],
                    "an output has another shape");
            }
        }
    }

    int32_t nbInputs() const
    {
        return static_cast<int32_t>(mInputs.size());
    }

    int32_t nbOutputs() const
    {
        return static_cast<int32_t>(mOutputs.size());
    }

    std::vector<HarnessTensor> mInputs;
    std::vector<HarnessTensor> mOutputs;
    std::vector<DynamicPluginTensorDesc> mDynamic; //!< of inputs, then outputs
    int64_t mMaxBatch;
    Results mSeen; //!< what execute() gave
};

IPluginCreatorV3One& findCreator(void* library, char const* name, Finder& finder)
{
    using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
    using SetLoggerFinder = void (*)(ILoggerFinder*);
    auto const getCreators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
    auto const setLoggerFinder = reinterpret_cast<SetLoggerFinder>(dlsym(library, "setLoggerFinder"));
    expect(getCreators != nullptr && setLoggerFinder != nullptr, "getCreators or setLoggerFinder is not exported");
    setLoggerFinder(&finder);
    int32_t count = 0;
    auto* const* const creators = getCreators(count);
    for (int32_t i = 0; i < count; ++i)
    {
        auto& creator = *static_cast<IPluginCreatorV3One*>(creators[i]);
        if (std::strcmp(creator.getPluginName(), name) == 0)
        {
            return creator;
        }
    }
    throw std::runtime_error(std::string("no creator of ") + name);
}

Plugin create(IPluginCreatorV3One& creator, PluginFieldCollection const& fields, TensorRTPhase phase)
{
    Plugin plugin(creator.createPlugin(creator.getPluginName(), &fields, phase));
    expect(plugin != nullptr, "createPlugin failed");
    return plugin;
}

//! \return a plugin made of what the given one serialises.
Plugin passThroughPlan(IPluginCreatorV3One& creator, Plugin plugin)
{
    auto const serialise = [](IPluginV3& any)
    { return capability<IPluginV3OneRuntime>(any, PluginCapabilityType::kRUNTIME).getFieldsToSerialize(); };
    Fields const saved(serialise(*plugin));
    expect(saved.collection()->nbFields == creator.getFieldNames()->nbFields, "not every field is serialised");
    plugin.reset();
    Plugin loaded = create(creator, *saved.collection(), TensorRTPhase::kRUNTIME);
    expect(Fields(serialise(*loaded)) == saved, "fields changed on their way through a plan");
    return loaded;
}

void live(IPluginCreatorV3One& creator, PluginFieldCollection const& fields, Run& run, bool inGraph)
{
    Plugin const made = create(creator, fields, TensorRTPhase::kBUILD);
    auto& core = capability<IPluginV3OneCore>(*made, PluginCapabilityType::kCORE);
    expect(std::strcmp(core.getPluginName(), creator.getPluginName()) == 0, "plugin and creator differ in name");
    expect(
        std::strcmp(core.getPluginVersion(), creator.getPluginVersion()) == 0, "plugin and creator differ in version");
    Plugin copy(made->clone());
    expect(copy != nullptr, "clone failed");
    size_t const workspaceBytes = run.build(*copy);

    Plugin const loaded = passThroughPlan(creator, std::move(copy));
    Context context;
    auto& runtime = capability<IPluginV3OneRuntime>(*loaded, PluginCapabilityType::kRUNTIME);
    Plugin const attached(runtime.attachToContext(&context));
    expect(attached != nullptr, "attachToContext failed");
    bool const isCleared = run.execute(*attached, workspaceBytes, inGraph);
    Plugin const detached(attached->clone());
    expect(detached != nullptr, "a context's plugin could not be cloned");
    bool const isClearedByCopy = run.execute(*detached, workspaceBytes, inGraph);
    if (std::strcmp(core.getPluginName(), "RetinaNetDecode") == 0)
    {
        expect(!isCleared && isClearedByCopy, "decode keeps memory in a context, and a copy has none of it");
    }
}

//! \return 0, or 1 with the reason of what was thrown, and what was logged, in `message`.
template <typename Action>
int32_t report(Action const& action, std::string const& logged, char* message, size_t messageBytes)
{
    try
    {
        action();
        return 0;
    }
    catch (std::exception const& error)
    {
        std::string const text = std::string(error.what()) + (logged.empty() ? "" : ": ") + logged;
        std::strncpy(message, text.c_str(), messageBytes - 1);
        message[messageBytes - 1] = '\0';
        return 1;
    }
}

} // namespace

extern "C"
{

//! \return 0, or 1 with the reason in `message`.
int32_t harnessRun(char const* library, char const* name, PluginField const* fields, int32_t nbFields,
    HarnessTensor const* inputs, int32_t nbInputs, HarnessTensor* outputs, int32_t nbOutputs, int64_t maxBatch,
    int32_t inGraph, char* message, size_t messageBytes)
{
    static Finder finder; // the library keeps it
    finder.logger.text.clear();
    auto const action = [&]
    {
        void* const handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
        expect(handle != nullptr, "the plugin library cannot be loaded");
        Run run(inputs, nbInputs, outputs, nbOutputs, maxBatch);
        live(findCreator(handle, name, finder), PluginFieldCollection{nbFields, fields}, run, inGraph != 0);
    };
    return report(action, finder.logger.text, message, messageBytes);
}

//! Create a plugin of a registry, serialise it, create it again: the fields must be the same.
int32_t harnessRegistry(IPluginRegistry* registry, char const* name, PluginField const* fields, int32_t nbFields,
    char* message, size_t messageBytes)
{
    auto const action = [&]
    {
        auto* const creator = static_cast<IPluginCreatorV3One*>(registry->getCreator(name, "1", ""));
        expect(creator != nullptr, "the registry has no such creator");
        passThroughPlan(*creator, create(*creator, PluginFieldCollection{nbFields, fields}, TensorRTPhase::kBUILD));
    };
    return report(action, "", message, messageBytes);
}

} // extern "C"
