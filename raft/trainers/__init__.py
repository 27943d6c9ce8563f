"""What makes a policy or a reward model out of examples, in packed batches.

A trainer keeps `raft.core.protocols.Trainer`; nothing here reads the files of a run.
"""
