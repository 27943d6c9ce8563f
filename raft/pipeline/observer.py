"""Observers: callbacks that the loop calls. The console prints, trackers send on, a notebook may draw."""

from collections.abc import Iterable, Sequence

from raft.config.recipe import Loaded
from raft.metrics.alerts import Alert
from raft.store.keys import Artifact
from raft.store.runs import Folder, Run


class Observer:
    """The callbacks, in the order in which they come. A subclass defines those that it wants; the rest do nothing."""

    def on_run_begin(self, run: Run, loaded: Loaded) -> None:
        """A run begins or goes on."""

    def on_notice(self, message: str) -> None:
        """Something is done in another way than one would expect."""

    def on_warning(self, message: str) -> None:
        """Something in the recipe or the environment is probably a mistake; a notice, unless a subclass differs."""
        self.on_notice(message)

    def on_checks(self, artifact: Artifact) -> None:
        """The rewards have been examined."""

    def on_iteration_end(self, it: Folder, alerts: Sequence[Alert]) -> None:
        """An iteration is complete, and this is what its figures say; 0 is the untouched policy."""

    def on_result(self, artifact: Artifact) -> None:
        """A job without iterations has its result."""

    def on_run_end(self, run: Run, loaded: Loaded) -> None:
        """A run is complete."""


class Several(Observer):
    """Tells several observers, in their order. What one of them raises stops the run."""

    def __init__(self, observers: Iterable[Observer]):
        self.observers = list(observers)

    def on_run_begin(self, run: Run, loaded: Loaded) -> None:
        for one in self.observers:
            one.on_run_begin(run, loaded)

    def on_notice(self, message: str) -> None:
        for one in self.observers:
            one.on_notice(message)

    def on_warning(self, message: str) -> None:
        for one in self.observers:
            one.on_warning(message)

    def on_checks(self, artifact: Artifact) -> None:
        for one in self.observers:
            one.on_checks(artifact)

    def on_iteration_end(self, it: Folder, alerts: Sequence[Alert]) -> None:
        for one in self.observers:
            one.on_iteration_end(it, alerts)

    def on_result(self, artifact: Artifact) -> None:
        for one in self.observers:
            one.on_result(artifact)

    def on_run_end(self, run: Run, loaded: Loaded) -> None:
        for one in self.observers:
            one.on_run_end(run, loaded)
