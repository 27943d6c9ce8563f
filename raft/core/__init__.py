"""Shared by every package: errors, records, seeds, files, the terminal, signals, and how components are built.

Nothing here knows of models, runs or stages."""
