"""Where things compute: the device, the engine's options, servers that raft starts, and clients of servers."""
