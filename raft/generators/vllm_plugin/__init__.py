"""What raft adds to vLLM by its plug-in entry points: architectures, weights loaded in place, CPU speed-ups."""
