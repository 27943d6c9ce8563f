"""What says how good responses are: reward models of every head, rules, judges, ensembles; and the doctor.

A reward keeps `raft.core.protocols.Reward`; nothing here generates or selects.
"""
