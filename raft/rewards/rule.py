"""kind: rule. A reward that is a Python function: a built-in one by its short name, or the user's own.

    reward: {kind: rule, function: my_rules:polite, args: {strict: true}}

    def polite(prompt, response, strict=False):
        return float("please" in response)

`prompt` is a raft.core.records.Prompt, whose `meta` holds references; `response` is the text.
"""

import inspect
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar

from raft.core import given, registry, signals
from raft.core.errors import Stopped, UserError
from raft.core.options import short, source, suggest, suggest_own
from raft.core.protocols import LARGEST
from raft.core.records import Group, Prompt, Score
from raft.core.terminal import is_unicode
from raft.core.user_code import folders, tell, unchanged
from raft.rewards import rules

MESSAGE = 200  # characters of an error that are kept
RESPONSES = ("", "Yes.", "The answer is 42.")  # of a trial, with the prompt itself
SECONDS = 60  # that a trial of a rule may take; it may import a library
BUGS = (
    "AttributeError",
    "ImportError",
    "KeyError",
    "ModuleNotFoundError",
    "NameError",
    "FileNotFoundError",
    "TypeError",
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A reward that calls `function(prompt, response, **args)` for each response, with the response as text.

    The function returns a number (true and false are 1 and 0), or a dict of numbers of which "reward" is the
    reward and the others are its parts. Whatever it raises makes that response one that cannot be scored.
    """

    function: str = source("code")
    args: dict[str, Any] = field(default_factory=dict)

    batch_size: ClassVar[int] = 1  # each response stands for itself
    uses_device: ClassVar[bool] = False

    def faults(self) -> Iterator[tuple[str, str]]:
        try:
            function = self._load()
        except ValueError as fault:
            yield "function", str(fault)
            return
        yield from _call_faults(function, self.args)
        if self.function in rules.BUILT_IN:
            yield from ((f"args.{name}", message) for name, message in rules.faults(self.args))

    def score(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        function = self._load()
        own = ":" in self.function
        for group in groups:
            with unchanged() if own else nullcontext():
                scores = [self._score(function, group.prompt, response.text, own) for response in group.responses]
            yield scores

    def _score(self, function: Callable[..., Any], prompt: Prompt, response: str, own: bool) -> Score:
        """A function of the user's own gets copies, which it may change."""
        args = self.args
        if own:
            prompt, args = deepcopy((prompt, args))
        return _score(function, prompt, response, args)

    def trial(self, prompts: Sequence[Prompt]) -> tuple[str, bool] | None:
        """What goes wrong on these prompts whatever the response, and whether that is an error of programming.

        It is called in a process of its own, which finds modules where this one does; a function that lives in this
        process alone is called here, on two of the prompts. None if it scores any of them, or is built in.
        """
        if ":" not in self.function:
            return None
        if self.function.startswith(f"{given.MODULE}:"):
            with unchanged():
                return _wrong(errors(self._load(), self.args, prompts[:2]), len(prompts[:2]))
        rows = [prompt.row() for prompt in prompts]
        asked = {"function": self.function, "args": self.args, "folders": folders(), "prompts": rows}
        command = [sys.executable, "-m", "raft.rewards.rule_trial"]
        try:
            done = subprocess.run(
                command, input=json.dumps(asked), capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return f"{self.function} took more than {SECONDS} s for {len(prompts)} prompts", False
        return None if done.returncode else _wrong(json.loads(done.stdout), len(prompts))

    def release(self) -> None:
        """A rule holds no accelerator."""

    def _load(self) -> Callable[..., Any]:
        if ":" in self.function:
            return registry.load(self.function)
        if self.function not in rules.BUILT_IN:
            raise ValueError(
                f"unknown rule {self.function!r}; {suggest_own(self.function, rules.BUILT_IN, 'function')}"
            )
        if missing := rules.missing(self.function):
            raise ValueError(f"{self.function} {missing}")
        return getattr(rules, self.function)


def errors(function: Callable[..., Any], args: Mapping[str, Any], prompts: Sequence[Prompt]) -> list[list[str]]:
    """Of each call of a rule on made-up responses to prompts, kind and words of what went wrong, or nothing."""
    wrong: list[list[str]] = []
    for prompt in prompts:
        for response in (*RESPONSES, prompt.content):
            try:
                found = function(deepcopy(prompt), response, **deepcopy(args))
            except Exception as fault:
                wrong.append([type(fault).__name__, f"raises {tell(fault)}"])
                continue
            try:
                numbers(found)
                wrong.append([])
            except Exception as fault:
                wrong.append([type(fault).__name__, f"returns no reward ({fault})"])
    return wrong


def _wrong(found: list[list[str]], prompts: int) -> tuple[str, bool] | None:
    """What a trial says, if every call went wrong, by what `errors` found."""
    if not found or not all(found):
        return None
    kind, words = found[0]
    bug = kind in BUGS
    first = f"each of the first {prompts} prompts" if prompts > 1 else "the first prompt"
    message = f"{words} on {first}, for every response that was tried"
    hint = "correct it" if bug else "such responses have no reward; return a number for those that are merely bad"
    return f"{message}; {hint}", bug


def _call_faults(function: Any, args: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Whether `function(prompt, response, **args)` is a call that can be made."""
    if not callable(function):
        yield "function", f"is a {type(function).__name__}, not a function f(prompt, response)"
        return
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C do not tell their arguments
        return
    try:
        taken = signature.bind_partial(None, None).arguments
    except TypeError:
        yield "function", f"takes {signature}; a rule is called with a prompt and a response: f(prompt, response)"
        return
    free = {name: one for name, one in signature.parameters.items() if name not in taken}
    named = [name for name, one in free.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    if not any(one.kind is one.VAR_KEYWORD for one in free.values()):
        for name in sorted(set(args) - set(named)):
            yield f"args.{name}", f"the rule takes no such argument; {suggest(name, named)}"
    for name in named:
        if free[name].default is inspect.Parameter.empty and name not in args:
            yield f"args.{name}", "missing; the rule has no default for it"


def _score(function: Callable[..., Any], prompt: Prompt, response: str, args: Mapping[str, Any]) -> Score:
    signals.check()
    try:
        parts = numbers(function(prompt, response, **args))
    except Stopped:
        raise
    except KeyboardInterrupt as fault:
        raise UserError(f"the rule raised {tell(fault)}; it must return a number or raise an Exception") from fault
    except BaseException as fault:  # sys.exit() as well: no rule ends a run
        return Score(None, error=tell(fault)[:MESSAGE])
    return Score(parts.pop("reward"), parts)


def numbers(found: Any) -> dict[str, float]:
    """What a rule returned as numbers by name, "reward" among them. TypeError or ValueError if it is not one."""
    named = found if isinstance(found, Mapping) else {"reward": found}
    if "reward" not in named:
        raise ValueError(f"the rule returned {', '.join(map(str, named)) or 'nothing'}, but no reward")
    return {_text(name): _number(name, value) for name, value in named.items()}


def _text(name: Any) -> str:
    text = str(name)
    if not is_unicode(text):
        raise ValueError(f"{short(text)}, a name in what the rule returned, holds half a character")
    return text


def _number(name: str, value: Any) -> float:
    if not isinstance(value, Real):
        raise TypeError(f"{name} is {short(value)}, not a number")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, not a finite number")
    number = float(value)
    if abs(number) > LARGEST:
        raise ValueError(f"{name} is {number:g}, beyond {LARGEST:g}: no mean could be taken of it")
    return number
