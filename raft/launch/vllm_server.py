"""A model served by vLLM's own server for OpenAI's protocol, as a child process that ends when this one does.

The server listens on the loopback interface alone, and answers only who has the key that is made for it at random.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from raft.core import device, logs, signals
from raft.core.errors import UserError, install_extra
from raft.core.terminal import safe
from raft.launch import supervise, vllm_options

NAME = "served"  # the server's name for its one model
RESERVED = (
    "model",
    "model_weights",
    "tokenizer",
    "revision",
    "code_revision",
    "tokenizer_revision",
    "served_model_name",
    "seed",
    "trust_remote_code",
    "allowed_local_media_path",
    "generation_config",
    "hf_token",
)
KEY = "VLLM_API_KEY"
LAST = (12, 300)  # lines of the output that an error repeats, and characters of each


def faults(engine_args: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Faults of a server's `engine_args`. An option that vLLM has, with a wrong value, shows at the start."""
    if find_spec("vllm") is None:
        yield "model", f"vllm is not installed here; {install_extra('cuda', 'cpu')}, or give the url of a server"
        return
    yield from vllm_options.faults(engine_args, RESERVED)
    if not isinstance(engine_args.get("max_model_len", 1), int):
        yield "engine_args.max_model_len", f"expected a whole number, found {engine_args['max_model_len']!r}"


class Served:
    """A running server of the model in `folder`, ready to answer at `url` with `key`.

    UserError if it cannot be started, with the end of what it wrote. All its output goes into the run's logs.
    """

    def __init__(self, folder: Path, engine_args: Mapping[str, Any]):
        self.folder, self.key, port = folder, secrets.token_urlsafe(32), _free_port()
        self.address = f"http://127.0.0.1:{port}"
        self.output = _sink()
        self.begin = self.output.seek(0, os.SEEK_END)
        command = [
            sys.executable,
            "-P",
            "-m",
            "vllm.entrypoints.openai.api_server",
            *_arguments(folder, port, engine_args),
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-I", supervise.__file__, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the run, which then ends the server in order
            env=_environment(self.key),
        )
        self.end = weakref.finalize(self, _end, self.process, self.output)  # at exit too
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """The address up to the version, as clients take it."""
        return f"{self.address}/v1"

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def stop(self) -> None:
        """Ends the server and all its processes, so that the accelerator's memory is free again."""
        self.end()

    def ended(self) -> UserError:
        """The error of a server that ended by itself."""
        count, width = LAST
        self.output.seek(max(self.begin, self.output.seek(0, os.SEEK_END) - 2 * count * width))
        lines = self.output.read().decode("utf-8", "replace").replace(self.key, "(the key)").splitlines()[-count:]
        quoted = "".join(f"\n  {safe(line)[:width]}" for line in lines)
        return UserError(
            f"vLLM's server of {self.folder} ended by itself with status {self.process.wait()}; change what it "
            f"complains of (the options engine_args), then run it again. Its last lines:{quoted}"
        )

    def _wait(self) -> None:
        import httpx

        with httpx.Client(trust_env=False, timeout=5) as client:
            while self.running:
                try:
                    if client.get(f"{self.address}/health").is_success:
                        return
                except httpx.TransportError:
                    pass
                signals.sleep(0.2)
        raise self.ended()


def _end(process: "subprocess.Popen[bytes]", output: IO[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    process.wait()
    output.close()


def _arguments(folder: Path, port: int, engine_args: Mapping[str, Any]) -> list[str]:
    """The command line of the server: what is ours, the defaults, and over them the options `engine_args`."""
    context = engine_args.get("max_model_len") or vllm_options.default_context(folder)
    defaults: dict[str, Any] = {"max_model_len": context}
    if device.current() == "cpu":
        defaults |= {"dtype": "float32", **vllm_options.cpu_defaults(context)}
    ours = {"model": str(folder), "served_model_name": NAME, "generation_config": "vllm", "seed": 0}
    serving = {"host": "127.0.0.1", "port": port, "disable_uvicorn_access_log": True}
    given = {**defaults, **engine_args, **ours, **serving}
    return [part for name, value in given.items() for part in _argument(name, value)]


def _argument(name: str, value: Any) -> list[str]:
    option = name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, list):
        return [f"--{option}", *map(str, value)]
    return [f"--{option}={json.dumps(value) if isinstance(value, dict) else value}"]


def _environment(key: str) -> dict[str, str]:
    """This process's own, but for what a generator has set there for its engine."""
    ours = {*vllm_options.IN_PROCESS, "VLLM_BATCH_INVARIANT"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # the folder has all that is needed
    return {**kept, **vllm_options.environment(), **offline, KEY: key}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _sink() -> IO[bytes]:
    """Where the output goes: a file beside the log of this launch, or one without a name that goes with the server."""
    log = logs.current()
    return tempfile.TemporaryFile() if log is None else open(log.with_suffix(".server.log"), "ab+")
