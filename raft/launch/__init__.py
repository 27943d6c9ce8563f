"""Where things compute: one device or the workers of a cluster; the engine's options, servers and their clients."""
