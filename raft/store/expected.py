"""How long a run will still take: from its own finished iterations, or from the forecast of `raft check --measure`."""

from contextlib import suppress
from pathlib import Path

from raft.core.atomic import read_object
from raft.core.errors import UserError
from raft.core.run_paths import RunPaths
from raft.store import stamps

FEW = 3  # finished iterations that are looked at, the last ones: responses grow longer


def rest(folder: Path, number: int, wanted: int) -> tuple[float | None, float]:
    """Seconds until the run's end, None if nothing is known of them, and those of them after iteration `number`.

    `wanted` is the number of the last iteration, 0 for a job without any.
    """
    if not wanted:
        return None, 0.0
    run, (iteration, start) = RunPaths(folder), _forecast(folder)
    made = [_spent(run.iteration(one).folder) for one in stamps.complete(folder) if 0 < one != number][-FEW:]
    if made:
        iteration = sum(made) / len(made)
    if iteration is None:
        return None, 0.0
    after = iteration * max(0, wanted - number)
    own = iteration if number else start or 0.0
    rest = after + max(0.0, own - _spent(run.iteration(number).folder))
    return rest or None, after  # what is made again may have taken all that was expected before


def _spent(folder: Path) -> float:
    """What the finished artifacts of an iteration took."""
    return float(sum(stamp["seconds"] for _, stamp in stamps.stamped(folder)))


def _forecast(folder: Path) -> tuple[float | None, float | None]:
    """Seconds of an iteration, and of what comes before the first, as they were foreseen."""
    file = RunPaths(folder).forecast
    if not file.is_file():
        return None, None
    with suppress(UserError):  # it is only a forecast
        found = read_object(file, "")
        iteration, start, stages = found.get("iteration"), found.get("start_up"), found.get("seconds")
        evaluation = stages.get("evaluate", 0.0) if isinstance(stages, dict) else 0.0
        if isinstance(iteration, int | float) and isinstance(start, int | float) and isinstance(evaluation, float):
            return iteration, start + evaluation
    return None, None
