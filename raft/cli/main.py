"""The command line. `raft --help`, completion, and `raft check` of a bad recipe import nothing heavy.

Exit status: 0 done, 2 something that the user can put right (one message, no traceback), 75 stopped by SIGTERM or
SIGUSR1 (the same command resumes), 130 by Ctrl-C, 129 when the terminal was closed; see raft/core/signals.py.
"""

import argparse
import errno
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from raft import __version__
from raft.cli import commands
from raft.core import signals, user_code
from raft.core.errors import Stopped, UserError
from raft.core.run_paths import OUTPUTS
from raft.core.terminal import complain


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions
        from raft.cli import completion

        completion.answer(_parser())
    signals.begin(shlex.join(["raft", *sys.argv[1:]]))
    status = execute(parse(arguments))
    if status or "torch" in sys.modules or any(thread.is_alive() for thread in user_code.LEFT):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # whoever read it may be gone
                stream.flush()
        os._exit(status)  # Python's shutdown looks through the libraries for seconds, and waits for an engine's threads
    signals.end()


def execute(options: argparse.Namespace) -> int:
    """Carries a command out, says what went wrong, and returns the exit status."""
    try:
        signals.read_grace()
        options.command(options)
        return 0
    except (Stopped, Exception) as fault:
        if signals.asked():  # whatever else went wrong comes of the signal, or will be met again
            signals.tell()
            return signals.status()
        return _status(fault)


def _status(fault: BaseException) -> int:
    """The exit status after a message about what the user can fix; anything else is raised. The run's log has both."""
    if isinstance(fault, BrokenPipeError):
        return 0
    if logging.getLogger().handlers:  # the log of the run
        logging.getLogger("raft").error(fault, exc_info=None if isinstance(fault, UserError) else fault)
    if isinstance(fault, UserError):
        complain(f"raft: {fault}")
    elif isinstance(fault, OSError):
        complain(f"raft: {_refusal(fault)}; all finished work is saved. Then resume with:\n  {signals.command()}")
    else:
        raise fault
    return 2


CURES = {
    errno.ENOSPC: "the disk is full ({}); make room",
    errno.EDQUOT: "the disk is full ({}): your quota is used up; make room",
    errno.EFBIG: "a file became too large ({}); raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "the disk can only be read ({}); mount it for writing, or put the run elsewhere",
    errno.EACCES: "no permission ({}); change it, or put the run elsewhere",
    errno.EPERM: "no permission ({}); change it, or put the run elsewhere",
    errno.ENAMETOOLONG: "a name is too long ({}); choose a shorter one",
    errno.ENOENT: "a file or folder is missing that was there ({}); was the run moved while it was at work?",
    errno.ENOTDIR: "a file is in the place of a folder ({}); move it away",
    errno.EISDIR: "a folder is in the place of a file ({}); move it away",
    errno.EIO: "the disk failed ({}); check it",
    errno.EMFILE: "too many open files ({}); raise the limit on open files (ulimit -n)",
}


def _refusal(fault: OSError) -> str:
    """What the operating system refused, and what to do."""
    return CURES.get(fault.errno or 0, "the operating system refused ({}); see to that").format(
        " ".join(str(fault).split())
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; overrides may also follow an option, which argparse does not support."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    overrides = [word for word in rest if ("=" in word or word.startswith("~")) and not word.startswith("-")]
    if len(overrides) < len(rest) or (rest and not hasattr(options, "overrides")):
        getattr(options, "parser", parser).error(f"unrecognized arguments: {' '.join(rest)}")
    if not hasattr(options, "command"):
        parser.print_help()
        parser.exit(2)
    if rest:
        options.overrides = [*options.overrides, *overrides]
    return options


WHICH = ("best", "last")  # policies that have a word
RUN: Any = {"type": Path, "help": "the folder of a run, such as outputs/quickstart"}


class Command(argparse.ArgumentParser):
    """The arguments of one command: options may stand before, between and behind the others."""

    _within = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._within:  # the intermixed parse calls this twice itself
            return super().parse_known_args(args, namespace)
        self._within = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._within = False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raft",
        description="Reward-ranked fine-tuning of language models.",
        epilog="Start with: raft run quickstart. raft COMMAND --help says more.",
    )
    parser.add_argument("--version", action="version", version=f"raft {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Command)

    def verb(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        subparser = verbs.add_parser(name, help=text, description=text)
        subparser.set_defaults(command=command, parser=subparser)
        return subparser

    run = verb("run", commands.run, "start a recipe's run, or resume it")
    resume = verb(
        "resume", commands.resume, "resume a run from its folder, or start a new one from one of its iterations"
    )
    pull = verb("pull", commands.pull, "bring a mirrored run (store.mirror) into a folder, to go on with it here")
    pull.add_argument("url", metavar="URL", help="the run in its mirror, such as s3://bucket/prefix/quickstart")
    pull.add_argument("--to", type=Path, metavar="DIR", help="default: outputs/NAME, with the last part of the URL")
    check = verb("check", commands.check, "report everything wrong with a recipe, without loading a model")
    for one in (run, check):
        one.add_argument("recipe", help="a YAML file, or the name of a recipe that comes with raft (see raft ls)")
    run.add_argument(
        "--restart", action="store_true", help="start over; the existing run is moved aside, nothing is deleted"
    )
    run.add_argument(
        "--seeds",
        metavar="0,1,2",
        help="one run per seed, and a summary of their gains: NAME for the recipe's own seed, NAME-seed1 ...",
    )
    check.add_argument(
        "--measure",
        action="store_true",
        help="also load the models, check the rewards, and forecast time, memory and disk",
    )
    check.add_argument(
        "--gpu",
        type=_gpus,
        metavar="GB|NxGB",
        help="only say whether it fits a GPU of so many GB (80), or N (8x80); neither they nor weights need be here",
    )
    resume.add_argument("run", **RUN)
    resume.add_argument(
        "--from-iteration", type=int, metavar="N", help="start a new run that shares what came before N"
    )
    for one in (run, check, resume):
        one.add_argument(
            "overrides",
            nargs="*",
            default=[],
            metavar="key=value",
            help="for example generator.k=4; ~key removes a key",
        )
    ls = verb("ls", commands.ls, "list the recipes that come with raft, and your runs")
    ls.add_argument(
        "outputs", type=Path, nargs="?", default=OUTPUTS, help="the folder with your runs; default: outputs"
    )
    cp = verb("cp", commands.cp, "copy a recipe that comes with raft, and the files it needs")
    cp.add_argument("recipe", help="its name, as raft ls lists it")
    cp.add_argument(
        "to", type=Path, nargs="?", default=Path(), help="a folder, or a new file name; default: the current folder"
    )
    options = verb(
        "options", commands.options, "list jobs, sections, kinds, and the options of each, or say what one key takes"
    )
    options.add_argument("name", nargs="?", metavar="JOB|SECTION[.KIND][.KEY]")
    form = options.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print the page docs/options.md")
    form.add_argument("--schema", action="store_true", help="print a JSON Schema of recipes, for editors")
    completion = verb("completion", commands.completion, "print a script for TAB completion in your shell")
    completion.add_argument("shell", choices=["bash", "zsh", "fish"], help='then: eval "$(raft completion bash)"')
    verb("env", commands.env, "print versions and hardware, for bug reports")
    status = verb("status", commands.status, "show the progress and the results of a run")
    status.add_argument("run", **RUN)
    status.add_argument("--files", action="store_true", help="also list its artifacts, with their times")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="refresh until the run ends")
    how.add_argument("--json", action="store_true", help="print one JSON object")
    plot = verb("plot", commands.plot, "draw a figure of one or more runs, with its numbers as CSV")
    plot.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    plot.add_argument(
        "--figure",
        default="reward",
        metavar="NAME",
        help="reward (default), distribution, best-of-n, gold, kl, length, or all of them",
    )
    plot.add_argument(
        "-o",
        "--output",
        type=Path,
        help="png, svg or pdf file, for all a folder; default: reward_curve.png or NAME.png in the run; "
        "of several runs A+B-NAME.png beside the first",
    )
    show = verb("show", commands.show, "show a prompt with its responses and rewards, before and after")
    show.add_argument("run", **RUN)
    show.add_argument(
        "prompt_id",
        nargs="?",
        help="one prompt over all iterations; default: a typical held-out prompt, and the one that gained most",
    )
    which = show.add_mutually_exclusive_group()
    for name, text in {"best": "that gained most", "worst": "that lost most", "random": "drawn at random"}.items():
        text = f"the held-out prompt {text}"
        which.add_argument(f"--{name}", dest="which", action="store_const", const=name, help=text)
    which.add_argument(
        "--list", action="store_true", help="list the held-out prompts with their rewards, before and after"
    )
    show.add_argument(
        "--train", action="store_true", help="list the training prompts of each iteration with their rewards"
    )
    compare = verb(
        "compare",
        commands.compare,
        "compare the last policies of runs with the first run's, on the same prompts, and say what differs first",
    )
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    select = verb(
        "select", commands.select, "tabulate what other selections would choose of the responses that a run has"
    )
    select.add_argument("run", **RUN)
    select.add_argument(
        "kinds",
        nargs="*",
        metavar="KIND",
        help="a kind, or '{kind: softmax, temperature: 0.5}'; default: the run's own",
    )
    select.add_argument("--iteration", type=_number(1), metavar="N", help="default: the last one with scores")
    select.add_argument("--json", action="store_true", help="print one JSON object for each selection")
    report = verb(
        "report", commands.report, "write an HTML page about a run: figures, metrics, every prompt and response"
    )
    report.add_argument("run", **RUN)
    report.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: report.html in the run")
    export = verb("export", commands.export, "write a policy as a self-contained model folder, with a model card")
    export.add_argument("run", type=Path, help="a run of job: align, sft or reward-model")
    export.add_argument("--to", type=Path, metavar="DIR", help="default: RUN-export, next to the run")
    export.add_argument("--push", metavar="OWNER/NAME", help="also upload it to the hub; a new repository is private")
    export.add_argument(
        "--alpaca-eval",
        type=Path,
        metavar="FILE",
        help="write its held-out answers for AlpacaEval instead",
    )
    chat = verb("chat", commands.chat, "answer your prompts with policy 0 and with the best policy")
    chat.add_argument("run", type=Path, help="a run of job: align or sft")
    chat.add_argument("prompt", nargs="?", help="a single prompt; default: each line you type, until Ctrl-D")
    chat.add_argument("--seed", type=int, help="the sampling seed; default: the run's own")
    evaluate = verb("eval", commands.evaluate, "compare policy 0 and the best policy on lm-evaluation-harness tasks")
    evaluate.add_argument("run", type=Path, help="a run of job: align or sft")
    evaluate.add_argument("--tasks", required=True, metavar="TASK[,TASK]", help="for example gsm8k,hellaswag")
    evaluate.add_argument("--limit", type=_number(1), metavar="N", help="only the first N documents of each task")
    evaluate.add_argument("--num-fewshot", type=_number(0), metavar="N", help="examples before a document")
    evaluate.add_argument("--include-path", type=Path, metavar="DIR", help="a folder with task files of your own")
    evaluate.add_argument("--batch-size", type=_number(1, "auto"), default=8, metavar="N|auto", help="default: 8")
    evaluate.add_argument("--apply-chat-template", action="store_true", help="ask in the policy's chat template")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    for one in (export, chat, evaluate):
        one.add_argument(
            "--policy", type=_number(0, *WHICH), default="best", metavar="N|best|last", help="default: best"
        )
    score = verb("score", commands.score, "score existing responses with any reward")
    score.add_argument("reward", help="a recipe, or a YAML file with only a reward section")
    score.add_argument("responses", type=Path, metavar="IN.jsonl")
    score.add_argument("scores", type=Path, metavar="OUT.jsonl")
    score.add_argument("--prompts", type=Path, help="the prompts.jsonl that goes with a run's responses.jsonl")
    score.add_argument(
        "--reasoning", default="split", choices=["split", "keep"], help="whether reasoning is removed before scoring"
    )
    score.add_argument(
        "--reasoning-marks", nargs=2, metavar=("START", "END"), help="the texts that begin and end reasoning"
    )
    return parser


def _number(least: int, *words: str) -> Callable[[str], int | str]:
    """What reads a whole number from `least` on, or one of some words."""

    def read(text: str) -> int | str:
        if text in words:
            return text
        if text.isascii() and text.isdecimal() and int(text) >= least:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not {' or '.join([f'a whole number from {least} on', *words])}")

    return read


def _gpus(text: str) -> tuple[int, int]:
    """How many GPUs, and the GB of each."""
    if (found := re.fullmatch(r"(?:([1-9]\d{0,3})x)?([1-9]\d{0,3})", text, re.ASCII)) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not GB for each GPU, such as 80, or 8x80 for eight of them")
    return int(found[1] or 1), int(found[2])
