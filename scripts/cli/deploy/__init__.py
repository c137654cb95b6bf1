"""From a checkpoint to a server."""
