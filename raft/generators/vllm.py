"""Generation with vLLM: one engine for the whole run, new policies loaded into it in place and proved.

Every response is a request of its own with its own seed, so it does not depend on what else is in the
batch; requests flow in as others finish (no barrier between chunks), and a group goes out as soon as
its last response is there. The engine lives in this process: on a CPU it then uses all cores, and a
policy is 0.1 s away instead of a restart.
"""

import ast
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from raft import chat, logs, probe
from raft.errors import UserError
from raft.generators.sampling import Sampling
from raft.plugins import suggest
from raft.records import Group, Policy, Prompt, Response
from raft.seeds import derive

LONGEST = 4096  # the default context in tokens, where the model allows it
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.1}  # of the probe, root mean square in nats
OURS = (
    "model",
    "tokenizer",
    "seed",
    "dtype",
    "max_model_len",
    "worker_extension_cls",
    "enable_sleep_mode",
    "trust_remote_code",
)
SPEED = (
    "gpu_memory_utilization",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enforce_eager",
    "kv_cache_memory_bytes",
    "swap_space",
    "max_parallel_loading_workers",
    "disable_log_stats",
    "cpu_offload_gb",
)


@dataclass(frozen=True, kw_only=True)
class VLLM(Sampling):
    """kind: vllm. `context` is the longest prompt and response together, in tokens; `engine` goes to vLLM as it is.

    On a CPU in float32 the tokens and log-probabilities of a response are bit for bit the same in any
    batch. On a GPU that takes `batch_invariant: true`, which costs speed.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    context: int | None = None
    batch_invariant: bool = False
    engine: dict[str, Any] = field(default_factory=dict, metadata={"speed_keys": SPEED})
    block = 1

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from Sampling.faults(self)
        if find_spec("vllm") is None:
            yield "kind", "vllm is not installed here; install raft[cpu] or raft[cuda], or use kind: transformers"
            return
        if self.context is not None and self.context <= self.max_tokens:
            yield "context", f"{self.context} leaves no room for a prompt beside max_tokens: {self.max_tokens}"
        for name in self.engine:
            if name in OURS:
                yield f"engine.{name}", "is decided by the run itself; remove it"
            elif name not in _engine_options():
                yield f"engine.{name}", f"vLLM has no such option; {suggest(name, _engine_options())[:200]}"

    def generate(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> Iterator[Group]:
        engine = _engine(self, policy)
        engine.hold(policy)
        yield from engine.answer(self, prompts, seed)

    def release(self) -> None:
        for engine in _engines.values():
            engine.sleep()

    @property
    def device_key(self) -> str:
        """All generators of a run share one engine."""
        return "vllm"


_engines: dict[str, "Engine"] = {}


def _engine(options: VLLM, policy: Policy) -> "Engine":
    key = json.dumps([options.dtype, options.context, options.batch_invariant, options.engine], sort_keys=True)
    if key not in _engines:
        assert not _engines, "one engine serves a run"
        _engines[key] = Engine(options, policy)
    return _engines[key]


def close() -> None:
    """Lets the engine go, so that another with other options can be built in this process."""
    import gc

    for engine in _engines.values():
        engine.llm.engine_core.shutdown()
    _engines.clear()
    gc.collect()


class Engine:
    """The living engine and the policy that it holds."""

    def __init__(self, options: VLLM, policy: Policy):
        _environment(options)
        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self.on_gpu = torch.cuda.is_available()
        self.dtype = ("bfloat16" if self.on_gpu else "float32") if options.dtype == "auto" else options.dtype
        self.context = options.context or min(_model_context(policy.path), LONGEST)
        if self.context > _model_context(policy.path):
            raise UserError(
                f"generator.context is {self.context}, but {policy.path} reads "
                f"{_model_context(policy.path)} tokens; lower it"
            )
        defaults: dict[str, Any] = {"enable_sleep_mode": True} if self.on_gpu else _cpu_defaults(self.context)
        arguments = EngineArgs(
            model=str(policy.path),
            dtype=self.dtype,
            max_model_len=self.context,
            seed=0,
            worker_extension_cls="raft.generators.reload.Reload",
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **{**defaults, **options.engine},
        )
        with logs.captured():
            self.llm: Any = LLMEngine.from_engine_args(arguments)
        self.tokenizer = chat.load_tokenizer(str(policy.path))
        self.held: Path | None = None
        self.asleep = False
        cache_config: Any = self.llm.vllm_config.cache_config
        # No more responses at once than the cache holds in full: then none is ever thrown out and computed again.
        room = cache_config.num_gpu_blocks * cache_config.block_size // self.context
        self.window = max(1, min(self.llm.vllm_config.scheduler_config.max_num_seqs, room))
        self.prove(policy)

    def hold(self, policy: Policy) -> None:
        """Makes the engine hold this policy, awake and proved."""
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        new = self.held != policy.path
        if new:
            self.held = None
            self.load(policy.path)
            self.llm.reset_prefix_cache()
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        if new:
            self.prove(policy)

    def prove(self, policy: Policy) -> None:
        """ProbeError unless the engine computes what the policy's probe says; only then it holds the policy."""
        measured = self.likelihoods(probe.tokens(policy.probe))
        probe.check(policy.probe, measured, TOLERANCE[self.dtype])
        self.held = policy.path

    def load(self, path: Path) -> None:
        """New weights into the living engine."""
        with logs.captured():
            self.llm.collective_rpc("load_policy", args=(str(path),))

    def sleep(self) -> None:
        """Gives a GPU's memory back. Level 1 keeps the weights in host memory; level 2 would lose buffers."""
        if self.on_gpu and not self.asleep:
            self.llm.sleep(level=1)
            self.asleep = True

    def likelihoods(self, texts: list[list[int]]) -> list[list[float]]:
        """Log-probability of each token but the first, given those before it."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0, detokenize=False)
        for number, ids in enumerate(texts):
            self.llm.add_request(f"probe-{number}", {"prompt_token_ids": ids}, params)
        found: dict[str, list[float]] = {}
        while self.llm.has_unfinished_requests():
            for output in self.llm.step():
                if output.finished:
                    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
                    found[output.request_id] = [by_token[token].logprob for token, by_token in pairs]
        return [found[f"probe-{number}"] for number in range(len(texts))]

    def answer(self, options: VLLM, prompts: Iterable[Prompt], seed: int) -> Iterator[Group]:
        """Groups as they finish, with no more than `window` responses under way."""
        waiting = ((prompt, ids, k) for prompt, ids in self._encoded(options, prompts) for k in range(options.k))
        unfinished: dict[str, tuple[Prompt, list[Response | None]]] = {}
        live = 0
        while True:
            for prompt, ids, k in islice(waiting, self.window - live):
                unfinished.setdefault(prompt.id, (prompt, [None] * options.k))
                params = _params(options, derive(seed, prompt.id, k))
                self.llm.add_request(f"{k}/{prompt.id}", {"prompt_token_ids": ids}, params)
                live += 1
            if not live:
                return
            for output in self.llm.step():
                if output.finished:
                    live -= 1
                    place, _, prompt_id = output.request_id.partition("/")
                    prompt, responses = unfinished[prompt_id]
                    responses[int(place)] = options.clean(_response(output.outputs[0], self.tokenizer), self.tokenizer)
                    if None not in responses:
                        del unfinished[prompt_id]
                        yield Group(prompt, responses)  # type: ignore[arg-type]

    def _encoded(self, options: VLLM, prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, list[int]]]:
        for prompt in prompts:
            ids = chat.encode_prompt(self.tokenizer, prompt)
            options.check_room(prompt, ids, self.context)
            yield prompt, ids


def _params(options: VLLM, seed: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        n=1,
        seed=seed,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k or -1,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        max_tokens=options.max_tokens,
        stop=options.stop or None,
        logprobs=0,
    )


def _response(output: Any, tokenizer: chat.Tokenizer) -> Response:
    ids, text = list(output.token_ids), output.text
    if ids[-1:] == [tokenizer.eos_token_id]:  # some tokenizers do not know it as special, and vLLM then spells it
        text = text.removesuffix(tokenizer.eos_token)
    logprobs = [by_token[token].logprob for token, by_token in zip(ids, output.logprobs, strict=True)]
    return Response(text, ids, logprobs, "length" if output.finish_reason == "length" else "stop")


def _environment(options: VLLM) -> None:
    """vLLM reads these when it is imported or when the engine is built."""
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: both cores, no pickling, a start in seconds
        "VLLM_CPU_ATTN_SPLIT_KV": "0",  # with it, a response's floats depend on how full the batch is
        "VLLM_NO_USAGE_STATS": "1",  # nothing leaves the machine
        "VLLM_CONFIGURE_LOGGING": "0",
    }
    if options.batch_invariant:
        settings["VLLM_BATCH_INVARIANT"] = "1"
    os.environ.update(settings)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, memory // 2**30 // 8)))  # GiB, touched only as it fills


def _cpu_defaults(context: int) -> dict[str, Any]:
    """Seeded sampling crashes on a CPU when a prompt is read in parts, so every prompt is read whole."""
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, context),
        "max_num_seqs": 256,
    }


def _model_context(path: Path) -> int:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    return next(
        (config[name] for name in ("max_position_embeddings", "n_positions", "max_seq_len") if config.get(name)),
        LONGEST,
    )


@cache
def _engine_options() -> list[str]:
    """The names of vLLM's engine options, read from its source: importing it takes ten seconds."""
    spec = find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / "engine" / "arg_utils.py").read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "EngineArgs")
    return [node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
