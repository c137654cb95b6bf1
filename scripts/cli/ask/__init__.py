"""Ask a detector or its server, and judge what it answers."""
