"""Where the time of a run went, from its stamps: by iteration and stage, and what of it was no computing.

`record` writes it into run.json when a process ends; the report draws it. What passes between two artifacts of one
process (drawing the curve, deleting policies) is `between`; what passes before its first one is `start-up`.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raft.core import timing
from raft.core.atomic import write_json
from raft.core.run_paths import RunPaths
from raft.store.runs import about
from raft.store.stamps import stamped

PARTS = {
    "start": "start-up",
    "reload": "load",
    "load": "load",
    "save": "save",
    "sync": "save",
    "hash": "save",
    "reference": "reference",
}


def record(folder: Path, began: float = timing.BEGAN) -> None:
    """Adds this process to run.json, and brings the timeline there up to what is finished.

    `began` is when it turned to this run: a process may first make what the recipe needs.
    """
    known = about(folder)
    earlier = [one for one in processes(known) if one["began"] != began]
    known["processes"] = [*earlier, {"began": began, "ended": time.time()}]
    known["timeline"] = [
        {name: one[name] for name in ("artifact", "stage", "began", "seconds", "parts")} for one in artifacts(folder)
    ]
    write_json(RunPaths(folder).about, known)


def processes(known: dict[str, Any]) -> list[dict[str, float]]:
    """The processes that run.json names, without malformed entries."""
    kept = []
    for one in known.get("processes", []):
        if isinstance(one, dict) and all(isinstance(one.get(name), int | float) for name in ("began", "ended")):
            kept.append(one)
    return kept


def artifacts(folder: Path) -> list[dict[str, Any]]:
    """What each stamp says, with the artifact's name and iteration, in the order in which they were made."""
    found = []
    for path, stamp in stamped(folder):
        name = path.relative_to(folder).as_posix()
        iteration = re.match(r"iterations/(\d+)/", name)
        found.append(
            {
                **stamp,
                "artifact": name,
                "iteration": int(iteration[1]) if iteration else None,
                "stage": "evaluate" if "/evaluation/" in name else stamp["key"]["stage"],
            }
        )
    return sorted(found, key=lambda one: (one["began"], one["artifact"]))


def shares(made: list[dict[str, Any]], processes: list[dict[str, float]]) -> Iterator[dict[str, Any]]:
    """Rows (iteration, stage, seconds) of all that time: stages without their parts, the parts, and what is between.

    Only processes that ended by themselves are known; of one that was killed, what passed between artifacts is not.
    """
    for one in made:
        parts = one["parts"]
        yield _share(one, one["stage"], one["seconds"] - sum(parts.values()))
        for name, seconds in parts.items():
            yield _share(one, PARTS.get(name, name), seconds)
    for process in processes:
        own = [one for one in made if process["began"] <= one["began"] <= process["ended"]]
        ends = [process["began"], *(one["began"] + one["seconds"] for one in own)]
        for end, one, name in zip(ends, own, ["start-up", *["between"] * len(own)], strict=False):
            yield _share(one, name, max(0.0, one["began"] - end))


def lanes(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each worker of a cluster did and when, by its name: spans with the stage, and how much was done."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in made:
        for lane in one.get("workers", []):
            span = {"artifact": one["artifact"], "iteration": one["iteration"], "stage": one["stage"], **lane}
            found.setdefault(span.pop("worker"), []).append(span)
    return [{"worker": name, "spans": spans} for name, spans in sorted(found.items())]


def _share(artifact: dict[str, Any], stage: str, seconds: float) -> dict[str, Any]:
    return {"iteration": artifact["iteration"], "stage": stage, "seconds": round(seconds, 3)}
