"""The figures of `raft plot`, each a module with what it measures and how it draws that."""
