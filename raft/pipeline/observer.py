"""Who is told of a run's steps: the command line prints them, trackers send them on, a notebook may draw them."""

from collections.abc import Iterable, Sequence

from raft.config.recipe import Loaded
from raft.metrics.alerts import Finding
from raft.store.keys import Artifact
from raft.store.runs import Folder, Run


class Told:
    """What is told, in the order in which it comes. A subclass defines what it wants of it; the rest does nothing."""

    def opened(self, run: Run, loaded: Loaded) -> None:
        """A run begins or goes on."""

    def noticed(self, message: str) -> None:
        """Something is done in another way than one would expect."""

    def diagnosed(self, artifact: Artifact) -> None:
        """The rewards have been examined."""

    def finished(self, it: Folder, findings: Sequence[Finding]) -> None:
        """An iteration is complete, and this is what its figures say; 0 is the untouched policy."""

    def measured(self, artifact: Artifact) -> None:
        """A job without iterations has its result."""

    def closed(self, run: Run, loaded: Loaded) -> None:
        """A run is complete."""


class Several(Told):
    """Tells several observers, in their order. What one of them raises stops the run."""

    def __init__(self, observers: Iterable[Told]):
        self.observers = list(observers)

    def opened(self, run: Run, loaded: Loaded) -> None:
        for one in self.observers:
            one.opened(run, loaded)

    def noticed(self, message: str) -> None:
        for one in self.observers:
            one.noticed(message)

    def diagnosed(self, artifact: Artifact) -> None:
        for one in self.observers:
            one.diagnosed(artifact)

    def finished(self, it: Folder, findings: Sequence[Finding]) -> None:
        for one in self.observers:
            one.finished(it, findings)

    def measured(self, artifact: Artifact) -> None:
        for one in self.observers:
            one.measured(artifact)

    def closed(self, run: Run, loaded: Loaded) -> None:
        for one in self.observers:
            one.closed(run, loaded)
