"""Triton repositories: model directories, their configs, and the versions they were made with."""
