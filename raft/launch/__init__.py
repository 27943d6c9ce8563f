"""Where things compute: the engine's options, servers that raft starts, and clients of servers."""
