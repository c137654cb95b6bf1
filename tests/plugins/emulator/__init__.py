"""CUDA on a CPU: the kernels and plugins of plugins/ emulated, and driven from Python, there or on a GPU."""
