// SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
// SPDX-License-Identifier: Apache-2.0

//! \file triton.cpp
//! \brief libretinaserve_triton.so: whoever loads it finds our plugins in the registry of the TensorRT in the process.
//!
//! Triton's TensorRT backend does no more with `plugins=` than dlopen. A library of its own does the rest, because one
//! that registers itself could not be given to loadLibrary(), as trtexec and Python do: its creators would be there
//! twice. The plugin library is expected beside it.

#include <NvInferRuntime.h>

#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <cstring>
#include <string>

namespace
{

using namespace nvinfer1;

constexpr char const* kPLUGINS = "libretinaserve_plugins.so";

//! Goes through the libraries of the process, since the name of TensorRT's changes with every major version.
int keepTensorRT(dl_phdr_info* info, size_t, void* found)
{
    char const* const slash = std::strrchr(info->dlpi_name, '/');
    char const* const name = slash == nullptr ? info->dlpi_name : slash + 1;
    bool const is = std::strncmp(name, "libnvinfer.so", 13) == 0 || std::strncmp(name, "libtensorrt_rtx.so", 18) == 0;
    if (is)
    {
        *static_cast<std::string*>(found) = info->dlpi_name;
    }
    return is ? 1 : 0;
}

IPluginRegistry* findRegistry()
{
    std::string path;
    dl_iterate_phdr(keepTensorRT, &path);
    void* const tensorRT = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    void* const get = tensorRT == nullptr ? nullptr : dlsym(tensorRT, "getPluginRegistry");
    return get == nullptr ? nullptr : reinterpret_cast<IPluginRegistry* (*)()>(get)();
}

//! Looks through the list, because getCreator() logs an error where there is none.
bool isComplete(IPluginRegistry const& registry)
{
    int32_t count = 0;
    IPluginCreatorInterface* const* const creators = registry.getAllCreators(&count);
    int32_t ours = 0;
    for (int32_t i = 0; i < count; ++i)
    {
        if (std::strcmp(creators[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0)
        {
            auto const* const name = static_cast<IPluginCreatorV3One const*>(creators[i])->getPluginName();
            ours += std::strcmp(name, "RetinaNetDecode") == 0 || std::strcmp(name, "RetinaNetNMS") == 0 ? 1 : 0;
        }
    }
    return ours >= 2;
}

//! \return what is wrong, or nothing.
std::string registerPlugins()
{
    IPluginRegistry* const registry = findRegistry();
    if (registry == nullptr)
    {
        return "there is no TensorRT in this process";
    }
    if (isComplete(*registry))
    {
        return "";
    }
    Dl_info self{};
    dladdr(reinterpret_cast<void*>(&registerPlugins), &self);
    std::string const own = self.dli_fname;
    std::string const plugins = own.substr(0, own.rfind('/') + 1) + kPLUGINS;
    // TensorRT does not say why a library can't be loaded; the linker does.
    if (dlopen(plugins.c_str(), RTLD_NOW | RTLD_LOCAL) == nullptr)
    {
        return dlerror();
    }
    registry->loadLibrary(plugins.c_str());
    return isComplete(*registry) ? "" : "TensorRT does not take the plugins of " + plugins;
}

__attribute__((constructor)) void tellProblem()
{
    std::string const problem = registerPlugins();
    if (!problem.empty())
    {
        std::fprintf(stderr, "libretinaserve_triton.so: %s\n", problem.c_str());
    }
}

} // namespace
