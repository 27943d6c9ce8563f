"""Whether two folders of outputs hold the same artifacts, byte for byte: what a change of the code alone has to leave.

    python benchmarks/same_artifacts.py outputs-before outputs-after

Compared are prompts, responses, scores, selections, metrics, probes and weights of all runs; stamps, logs and run.json
hold times. Prints how many files are equal and which are not, and ends with status 1 if any is not.
"""

import sys
from pathlib import Path

EXACT = ("*.jsonl", "metrics.json", "probe.json", "*.safetensors", "reward_curve.*")


def main() -> None:
    """Compares the two folders that are named."""
    before, after = (artifacts(Path(name)) for name in sys.argv[1:])
    if not before:
        raise SystemExit(f"no artifacts in {sys.argv[1]}")
    unequal = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    print(f"{len(before)} files before, {len(after)} after, {len({*before, *after}) - len(unequal)} equal")
    for name in unequal:
        print(f"  {'not the same' if name in before and name in after else 'in one of them alone'}: {name}")
    raise SystemExit(1 if unequal else 0)


def artifacts(folder: Path) -> dict[str, bytes]:
    """The content of all artifacts below a folder, by name."""
    files = {file for pattern in EXACT for file in folder.rglob(pattern) if file.is_file() and not file.is_symlink()}
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


if __name__ == "__main__":
    main()
