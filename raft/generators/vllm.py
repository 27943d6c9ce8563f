"""Generation with vLLM: one engine for the whole run, new policies loaded into it in place and proved.

Every response is a request of its own with its own seed, so it does not depend on what else is in the
batch; requests flow in as others finish (no barrier between chunks), and a group goes out as soon as
its last response is there. The engine lives in this process: on a CPU it then uses all cores, and a
policy is 0.1 s away instead of a restart.
"""

import gc
import itertools
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from raft.core import device, garbage, logs, progress
from raft.core.errors import UserError, install_extra
from raft.core.records import Group, Policy, Prompt, Response
from raft.core.timing import part
from raft.generators.sampling import Ends, Sampling
from raft.launch import vllm_options
from raft.models import chat_templates, model_folder, weight_check

LOG = logging.getLogger(__name__)
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.1}  # of the probe, root mean square in nats
RESERVED = (
    "model",
    "tokenizer",
    "seed",
    "dtype",
    "max_model_len",
    "worker_extension_cls",
    "enable_sleep_mode",
    "trust_remote_code",
    "model_weights",
    "revision",
    "tokenizer_revision",
    "code_revision",
    "tokenizer_mode",
    "skip_tokenizer_init",
    "logprobs_mode",
    "generation_config",
    "runner",
    "convert",
    "worker_cls",
    "allowed_local_media_path",
)
NOT_SPLIT = re.compile(
    r"(pipeline|data|prefill_context|decode_context)_parallel_.*|distributed_executor_backend|nnodes|node_rank"
    r"|master_(addr|port)|device_ids|enable_(expert_parallel|elastic_ep|eplb|dbo)"
)
UNTRIED = re.compile(
    r"speculative_config|spec_(method|model|tokens)|enable_lora|(kv|ec|weight)_transfer_config|diffusion_config"
    r"|tokens_only|logits_processors|return_sampling_mask|fault_tolerance_config|enable_fault_tolerance"
)
PAUSE = 0.001  # seconds between two looks for prompts, while nothing is under way
END: tuple[()] = ()  # behind the last of what is to be asked
Waiting = tuple[Prompt, list[int], int]
FORMATS = ("auto", "safetensors", "pt", "hf")  # of weights that can be loaded again out of a policy's folder


@dataclass(frozen=True, kw_only=True)
class VLLM(Sampling):
    """kind: vllm. `max_model_len` bounds prompt and response together, in tokens; `engine_args` goes to vLLM as it is.

    On a CPU in float32 the tokens and log-probabilities of a response are bit for bit the same in any
    batch. On a GPU that takes `batch_invariant: true`, which costs speed.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int | None = None
    batch_invariant: bool = False
    engine_args: dict[str, Any] = field(default_factory=dict, metadata={"speed_keys": vllm_options.SPEED})
    batch_size = 1
    continuous = True
    can_continue = True

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from Sampling.faults(self)
        if find_spec("vllm") is None:
            yield "kind", f"vllm is not installed here; {install_extra('cuda', 'cpu')}, or use kind: transformers"
            return
        if self.max_model_len is not None and self.max_model_len <= self.max_tokens:
            yield (
                "max_model_len",
                f"{self.max_model_len} leaves no room for a prompt beside max_tokens: {self.max_tokens}",
            )
        yield from vllm_options.faults(self.engine_args, RESERVED)
        for name, value in self.engine_args.items():
            if NOT_SPLIT.fullmatch(name) and not (name.endswith("_size") and value == 1):
                yield (
                    f"engine_args.{name}",
                    "an engine of raft computes on one machine; remove it, and use launch: {kind: ray} for several "
                    "GPUs, and tensor_parallel_size for a policy that one GPU does not hold",
                )
            elif name == "tensor_parallel_size" and not (isinstance(value, int) and value >= 1):
                yield "engine_args.tensor_parallel_size", f"{value!r} is no number of GPUs"
            elif UNTRIED.fullmatch(name):
                yield (
                    f"engine_args.{name}",
                    "is not supported: tokens or new weights might come out otherwise; remove it",
                )
        if (form := self.engine_args.get("load_format", "auto")) not in FORMATS:
            yield "engine_args.load_format", f"{form!r} cannot load a policy's folder; allowed: {', '.join(FORMATS)}"

    def generate(self, policy: Policy, prompts: Iterable[Prompt], seed: int) -> Iterator[Group]:
        """As `protocols.Generator` says; an engine that fails is built again, once, and goes on."""
        asked: dict[str, Prompt] = {}
        rest = _noted(prompts, asked)
        try:
            yield from self._generate(policy, rest, seed, asked)
        except EngineError as fault:
            LOG.warning("the engine failed (%s) and is built again; %d prompts are asked again", fault, len(asked))
            close()
            yield from self._generate(policy, itertools.chain([*asked.values()], rest), seed, asked)

    def _generate(
        self, policy: Policy, prompts: Iterable[Prompt], seed: int, asked: dict[str, Prompt]
    ) -> Iterator[Group]:
        """Groups as they finish, which are then not `asked` any more."""
        with part("start"):
            engine = _engine(self, policy)
        with part("reload"):
            engine.hold(policy)
        for group in engine.answer(self, prompts, seed):
            del asked[group.prompt.id]
            yield group

    def release(self) -> None:
        for engine in _engines.values():
            engine.sleep()

    def resolved(self) -> dict[str, Any]:
        """What follows the device where the recipe leaves it open."""
        return {"dtype": device.dtype_of(self.dtype)}

    def proof(self) -> dict[str, Any]:
        """How far the engine's log-probabilities were from its policy's probe, and the format of its logits."""
        for engine in _engines.values():  # one at most
            head = str(engine.llm.vllm_config.model_config.head_dtype).removeprefix("torch.")
            return {"probe_rms_nats": engine.distance, "head_dtype": head}
        return {}

    @property
    def gpus(self) -> int:
        """Over how many GPUs a policy is split."""
        return self.engine_args.get("tensor_parallel_size", 1)

    @property
    def device_key(self) -> str:
        """All generators of a run share one engine."""
        return "vllm"


class EngineError(RuntimeError):
    """The engine itself failed, not what it was asked."""


def _noted(prompts: Iterable[Prompt], asked: dict[str, Prompt]) -> Iterator[Prompt]:
    """The prompts, each noted as it goes; None, where there is none yet, is not."""
    for prompt in prompts:
        if prompt is not None:
            asked[prompt.id] = prompt
        yield prompt


_engines: dict[str, "Engine"] = {}


def _engine(options: VLLM, policy: Policy) -> "Engine":
    made_for = [
        options.dtype,
        options.max_model_len,
        options.batch_invariant,
        options.engine_args,
        vllm_options.shape(policy.path),
    ]
    key = json.dumps(made_for, sort_keys=True)
    _environment(options)
    if key not in _engines:
        close()
        with progress.waiting("vLLM is starting"):
            _engines[key] = Engine(options, policy)
    return _engines[key]


def close() -> None:
    """Closes the engine, so that another can be built in this process for other shapes or options."""
    engines = [*_engines.values()]
    _engines.clear()
    for engine in engines:
        engine.llm.engine_core.shutdown()
    garbage.restore()
    gc.collect()


class Engine:
    """The living engine and the policy that it holds."""

    def __init__(self, options: VLLM, policy: Policy):
        import torch
        from vllm import EngineArgs, LLMEngine
        from vllm.usage.usage_lib import UsageContext

        self.on_gpu = device.current() == "cuda"
        if options.batch_invariant and self.on_gpu and torch.cuda.get_device_capability() < (9, 0):
            raise UserError(
                "generator.batch_invariant takes a GPU of compute capability 9.0 or newer (Hopper): on older GPUs vLLM "
                "replaces the matrix products of the whole process, and training has no gradient then; leave it out"
            )
        self.dtype = device.dtype_of(options.dtype)
        reads = model_folder.positions(policy.path)
        self.context = options.max_model_len or vllm_options.default_context(policy.path)
        if reads is not None and self.context > reads:
            raise UserError(
                f"generator.max_model_len is {self.context}, but {policy.path} reads {reads} tokens; lower it"
            )
        longest = max(map(len, weight_check.tokens(policy.probe)))
        if self.context <= longest:
            raise UserError(
                f"generator.max_model_len is {self.context}, but its probe has texts of up to {longest} tokens; "
                f"raise it to {longest + 1} or more"
            )
        given: dict[str, Any] = {
            "model": str(policy.path),
            "dtype": self.dtype,
            "max_model_len": self.context,
            "seed": 0,
            "worker_extension_cls": "raft.generators.vllm_plugin.worker.Worker",
            **_defaults(options, self.dtype, self.context, self.on_gpu),
        }
        threads = torch.get_num_threads()
        with logs.stderr_to_log():
            try:
                # Batches as large as vLLM's own class for offline work has them; it is a fraction of that otherwise.
                self.llm: Any = LLMEngine.from_engine_args(EngineArgs(**given), usage_context=UsageContext.LLM_CLASS)
            except (ValueError, TypeError, RuntimeError, AssertionError) as fault:  # memory, drivers and options
                reason = "; ".join(error["msg"] for error in fault.errors()) if hasattr(fault, "errors") else fault
                raise UserError(
                    f"vLLM cannot start with {policy.path}: {reason}; its options are in generator.engine_args, and "
                    "raft check says how much memory a recipe needs"
                ) from fault
            if self.on_gpu:
                torch.set_num_threads(threads)  # vLLM leaves one, but trainer and scorer load their weights here too
        self.tokenizer = chat_templates.load_tokenizer(str(policy.path))
        self.held: Path | None = None
        self.distance = math.nan
        self.asleep = False
        self.room, self.block_sizes = _cache(self.llm)
        self.most = self.llm.vllm_config.scheduler_config.max_num_seqs
        self.prove(policy)
        gc.collect()
        garbage.restore()
        garbage.spare()  # the engine's objects too

    def hold(self, policy: Policy) -> None:
        """Makes the engine hold this policy, awake and proved."""
        with device.fits("the engine", "lower generator.engine_args.gpu_memory_utilization"):
            self._hold(policy)

    def _hold(self, policy: Policy) -> None:
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        new = self.held != policy.path
        if new:
            self.held = None
            self.load(policy.path)
            assert self.llm.reset_prefix_cache(), "something is still under way"
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        if new:
            self.prove(policy)

    def prove(self, policy: Policy) -> None:
        """ProbeError unless the engine computes what the policy's probe says; only then it holds the policy."""
        measured = self.likelihoods(weight_check.tokens(policy.probe))
        distance = weight_check.check(policy.probe, measured, TOLERANCE[self.dtype], self.dtype)
        LOG.info("the engine holds %s: its probe differs by %.2g nats (rms)", policy.path, distance)
        self.held, self.distance = policy.path, distance

    def load(self, path: Path) -> None:
        """New weights into the living engine."""
        with logs.stderr_to_log():
            self.llm.collective_rpc("load_policy", args=(str(path),))

    def sleep(self) -> None:
        """Gives a GPU's memory back. Level 1 keeps the weights in host memory; level 2 would lose buffers."""
        if self.on_gpu and not self.asleep:
            self.llm.sleep(level=1)
            self.asleep = True
            LOG.info("the engine sleeps: %.2f of %.2f GB of the GPU are free", *(size / 1e9 for size in _gpu_memory()))

    def likelihoods(self, texts: list[list[int]]) -> list[list[float]]:
        """Log-probability of each token but the first, given those before it."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0, detokenize=False)
        for number, ids in enumerate(texts):
            self.llm.add_request(f"probe-{number}", {"prompt_token_ids": ids}, params)
        likely: dict[str, list[float]] = {}
        while self.llm.has_unfinished_requests():
            for output in self.llm.step():
                if output.finished:
                    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
                    likely[output.request_id] = [by_token[token].logprob for token, by_token in pairs]
        return [likely[f"probe-{number}"] for number in range(len(texts))]

    def answer(self, options: VLLM, prompts: Iterable[Prompt], seed: int) -> Iterator[Group]:
        """Groups as they finish, with as many responses under way as there is room; what is left is aborted."""
        live: dict[str, int] = {}
        try:
            yield from self._answer(options, prompts, seed, live)
        except EngineError:
            live.clear()  # there is nothing left that could be aborted
            raise
        finally:
            if live:
                self.llm.abort_request(list(live))

    def _answer(self, options: VLLM, prompts: Iterable[Prompt], seed: int, live: dict[str, int]) -> Iterator[Group]:
        """As `answer`; `live` has the blocks of the cache that each response under way may take."""
        waiting = self._waiting(options, prompts)
        after = next(waiting, END)
        unfinished: dict[str, tuple[Prompt, int, list[Response | None]]] = {}
        ends = options.ends(self.tokenizer)
        while True:
            after = after or next(waiting, END)
            while after and len(live) < self.most:
                prompt, ids, k = after
                blocks = self.blocks(len(ids) + options.max_tokens + 1)  # a GPU is asked one token ahead
                if live and sum(live.values()) + blocks > self.room:
                    break
                if prompt.id not in unfinished:
                    unfinished[prompt.id] = prompt, options.opening(self.tokenizer, ids), [None] * options.k
                params = _params(options, ends, prompt.seed(seed, k))
                name = f"{k}/{prompt.id}"
                self.llm.add_request(name, {"prompt_token_ids": ids}, params)
                live[name] = blocks
                after = next(waiting, END)
            if not live and after is END:
                return
            if not live:
                time.sleep(PAUSE)
                continue
            with device.fits("a step of the engine", "lower generator.engine_args.gpu_memory_utilization"):
                outputs = self._step()
            for output in outputs:  # only finished outputs: FINAL_ONLY
                del live[output.request_id]
                place, _, prompt_id = output.request_id.partition("/")
                prompt, opened, responses = unfinished[prompt_id]
                response = _response(output.outputs[0], self.tokenizer, ends)
                responses[int(place)] = options.finish(response, self.tokenizer, opened)
                if None not in responses:
                    del unfinished[prompt_id]
                    yield Group(prompt, responses)  # type: ignore[arg-type]

    def _step(self) -> list[Any]:
        """What the engine has finished. EngineError; what says that memory is short is raised as it is."""
        try:
            return self.llm.step()
        except Exception as fault:
            if device.is_full(fault):
                raise
            raise EngineError(f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}") from fault

    def blocks(self, tokens: int) -> int:
        """How many blocks of the cache a response of so many tokens takes, its prompt's among them.

        With no more responses at once than the cache holds in full, none is preempted and recomputed. A
        window of attention lets blocks go early; what it saves is not counted.
        """
        return sum(-(-tokens // size) for size in self.block_sizes)

    def _waiting(self, options: VLLM, prompts: Iterable[Prompt | None]) -> Iterator[Waiting | None]:
        """What is to be asked: each prompt k times; None while there is no prompt yet."""
        for prompt in prompts:
            if prompt is None:
                yield None
                continue
            ids = chat_templates.encode_prompt(self.tokenizer, prompt)
            options.check_room(prompt, ids, self.context)
            yield from ((prompt, ids, k) for k in range(options.k))


def _defaults(options: VLLM, dtype: str, context: int, on_gpu: bool) -> dict[str, Any]:
    """The default options of an engine, overridden by those of the recipe.

    On a GPU the logits are computed in float32, as transformers has them: in bfloat16 a log-probability is off by up
    to 0.1 nats. What sleeps gives the memory of its CUDA graphs back, too.
    """
    defaults: dict[str, Any] = {"disable_log_stats": True, "use_tqdm_on_load": False}
    if options.gpus > 1:
        defaults["distributed_executor_backend"] = "mp"  # inside a worker of Ray vLLM would choose Ray
    if not on_gpu:
        return defaults | vllm_options.cpu_defaults(context) | options.engine_args
    defaults |= {"enable_sleep_mode": True, "sleep_mode_offload_cudagraph": True} | options.engine_args
    if dtype != "float32":
        defaults["hf_overrides"] = {"head_dtype": "float32", **options.engine_args.get("hf_overrides", {})}
    return defaults


def _cache(llm: Any) -> tuple[int, list[int]]:
    """How many blocks the engine's cache has for responses, and the tokens of a block in each group of layers."""
    cache = llm.engine_core.engine_core.scheduler.kv_cache_config
    sizes = [group.kv_cache_spec.block_size for group in cache.kv_cache_groups if not group.host_resident]
    return cache.num_blocks - 1, sizes  # one block represents missing blocks


def _gpu_memory() -> tuple[int, int]:
    """Bytes that are free, and all."""
    import torch

    return torch.cuda.mem_get_info()


def _params(options: VLLM, ends: Ends, seed: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=1,
        seed=seed,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k or -1,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        max_tokens=options.max_tokens,
        stop=ends.texts or None,
        stop_token_ids=sorted(ends.tokens),
        detokenize=bool(ends.texts),  # a text is spelled once, when it is whole
        logprobs=0,
        flat_logprobs=True,  # one list of floats, not an object for each token
        skip_clone=True,  # made afresh for each response
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _response(output: Any, tokenizer: chat_templates.Tokenizer, ends: Ends) -> Response:
    """What vLLM has drawn, spelled as every generator spells it."""
    ids, logprobs = list(output.token_ids), output.logprobs.logprobs
    assert len(logprobs) == len(ids)
    reason = "length" if output.finish_reason == "length" else "stop"
    return Response(ends.spell(tokenizer, ids), ids, logprobs, reason)


def _environment(options: VLLM) -> None:
    """vLLM reads these when it is imported, when the engine is built, and some whenever it computes."""
    os.environ.update(vllm_options.environment() | vllm_options.IN_PROCESS)
    if options.batch_invariant:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    if options.gpus > 1 and "|" not in os.environ.get("VLLM_CPU_OMP_THREADS_BIND", ""):
        shares = (device.cores(place, options.gpus) for place in range(options.gpus))
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, share)) for share in shares)
