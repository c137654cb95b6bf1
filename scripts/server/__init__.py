"""The embedded Triton: found, started, watched, updated and stopped."""
