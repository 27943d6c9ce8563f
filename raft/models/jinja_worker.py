"""The process that writes chat templates: Jinja's sandbox under a limit of memory and of time.

A template comes with a model, so it is a stranger's program. The sandbox keeps it from files and from Python; only the
system can bound what it computes. Run by `models.jinja`: one request a line on standard input, one answer a line on
standard output. What a template can use is what transformers gives to one.
"""

import json
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 1 << 30  # bytes of address space
SECONDS = 5.0  # of computing, for one text
LONGEST = 1 << 25  # characters of a text


class Generation(Extension):
    """{% generation %} ... {% endgeneration %}, by which some templates mark what the assistant wrote."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Callable[[], str]) -> str:
        return caller()


def environment(strict: bool, day: str) -> ImmutableSandboxedEnvironment:
    """The environment of a template; with `strict` an undefined name is an error."""
    undefined = StrictUndefined if strict else Undefined
    sandbox = ImmutableSandboxedEnvironment(
        undefined=undefined, trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    sandbox.filters["tojson"] = to_json
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = datetime.fromisoformat(day).strftime
    return sandbox


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is, where Jinja's own filter escapes what HTML does not like."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(message: Any) -> None:
    raise TemplateError(str(message))


@lru_cache(maxsize=16)
def compiled(template: str, strict: bool, day: str) -> Any:
    return environment(strict, day).from_string(template)


def variables(request: dict[str, Any]) -> list[str]:
    """The variables that a template reads and does not set itself."""
    sandbox = environment(request["strict"], request["day"])
    return sorted(meta.find_undeclared_variables(sandbox.parse(request["template"])) - {*sandbox.globals})


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The text of a request, or, where there are no values, the `variables` that its template reads.

    Else what is wrong: `broken` of the template, `limit` of what it takes, or `refused` by it.
    """
    try:
        if request["values"] is None:
            return {"variables": variables(request)}
        template = compiled(request["template"], request["strict"], request["day"])
    except TemplateSyntaxError as fault:
        return {"broken": f"line {fault.lineno}: {fault.message}"[:300]}
    except MemoryError:
        return {"limit": "memory"}
    except Exception as fault:
        return {"broken": f"{type(fault).__name__}: {fault}"[:300]}
    try:
        text = template.render(request["values"])
    except MemoryError:
        return {"limit": "memory"}
    except Exception as fault:
        return {"refused": str(fault)[:300], "kind": type(fault).__name__}
    return {"text": text} if len(text) <= LONGEST else {"limit": "length"}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # what it does ends the process
        reply = json.dumps(answer(json.loads(line)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(reply.encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
