"""Who answers prompts: vLLM in this process, transformers, or a server; and what raft adds to vLLM.

A generator keeps `raft.core.protocols.Generator`; nothing here scores or selects.
"""
