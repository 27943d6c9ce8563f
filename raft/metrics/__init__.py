"""The figures of a run as pure functions of arrays, and the alerts that they raise. No files."""
