"""Runs on the disk: keys, stamps, artifacts, branches, and the figures of an iteration out of its artifacts."""
