"""Shared by every package: errors, records, seeds, files, a run's paths, the terminal, signals,
the device, and how components are built.

Nothing here knows of models, runs or stages."""
