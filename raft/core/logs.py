"""What libraries log and warn goes into the run's logs/, so that the terminal shows the run."""

import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raft import __version__
from raft.core.errors import UserError
from raft.core.run_paths import RunPaths


class Log(logging.FileHandler):
    """A log whose folder may be gone: the code that writes artifacts reports that."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)


class Told(logging.Handler):
    """Tells a function the level and the text of each record, for a process that has no log of its own."""

    def __init__(self, tell: Callable[[int, str], None]):
        super().__init__()
        self.tell = tell
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # nobody may be listening any more
            self.tell(record.levelno, self.format(record))


def begin(folder: Path) -> Path:
    """Opens the log of this launch; `logs/latest.log` points to it."""
    if (folder / "logs").is_symlink():
        raise UserError(f"{folder / 'logs'} is a link, and raft writes through none inside a run; delete it")
    (folder / "logs").mkdir(exist_ok=True)
    file = folder / "logs" / time.strftime("%Y%m%d-%H%M%S.log")
    if file.is_symlink():
        file.unlink()
    latest = RunPaths(folder).log
    latest.unlink(missing_ok=True)
    latest.symlink_to(file.name)
    handler = Log(file, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    take_over(handler)
    logging.getLogger("raft").info("raft %s: %s", __version__, shlex.join(sys.argv))
    return file


def take_over(handler: logging.Handler) -> None:
    """Sends all that libraries log and warn of in this process to a handler, and nowhere else."""
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.raiseExceptions = False  # a full disk is reported once, by the code that writes artifacts
    logging.captureWarnings(False)  # it may think that it captures them where somebody has put them back since
    logging.captureWarnings(True)
    warnings.simplefilter("default")


@contextmanager
def kept() -> Iterator[None]:
    """Puts back at the end what `begin` and `silence_libraries` change, for a program that uses raft as a library."""
    root, captures = logging.getLogger(), warnings.showwarning.__module__ == "logging"
    handlers, level, raises, shown = list(root.handlers), root.level, logging.raiseExceptions, _of_transformers()
    with warnings.catch_warnings():
        try:
            yield
        finally:
            for handler in root.handlers:
                if handler not in handlers:
                    handler.close()
            root.handlers[:], logging.raiseExceptions = handlers, raises
            root.setLevel(level)
            logging.captureWarnings(captures)
            _restore_transformers(shown)


@contextmanager
def discarded() -> Iterator[None]:
    """Keeps what libraries log and warn off the terminal, for a command that has no log."""
    with kept():
        take_over(logging.NullHandler())
        silence_libraries()
        yield


def _of_transformers() -> tuple[list[logging.Handler], bool, bool] | None:
    """The handlers of transformers' logger, whether it propagates, whether bars are shown; None before its import."""
    if "transformers" not in sys.modules:
        return None
    from transformers.utils import logging as theirs

    logger = theirs.get_logger()
    return list(logger.handlers), logger.propagate, theirs.is_progress_bar_enabled()


def _restore_transformers(shown: tuple[list[logging.Handler], bool, bool] | None) -> None:
    if "transformers" not in sys.modules:
        return
    from transformers.utils import logging as theirs

    logger = theirs.get_logger()
    if shown is None:
        theirs.enable_default_handler()
        logger.propagate, bars = False, True
    else:
        logger.handlers[:], logger.propagate, bars = shown
    (theirs.enable_progress_bar if bars else theirs.disable_progress_bar)()


def current() -> Path | None:
    """The log of this launch; None without a log, when raft is used as a library."""
    files = (
        handler.baseFilename for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)
    )
    return next((Path(file) for file in files if file != os.devnull), None)


@contextmanager
def stderr_to_log() -> Iterator[None]:
    """What libraries write to the error stream itself, below Python, goes into the log too."""
    if (file := current()) is None:
        yield
        return
    sys.stderr.flush()
    screen = os.dup(2)
    with open(file, "ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)


def silence_libraries() -> None:
    """Stops transformers from printing by itself. Called only when it is needed: importing it takes seconds."""
    if not logging.getLogger().handlers:
        return  # raft is used as a library
    from transformers.utils import logging as theirs

    theirs.disable_default_handler()
    theirs.enable_propagation()
    theirs.disable_progress_bar()
