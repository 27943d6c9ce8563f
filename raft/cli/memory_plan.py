"""How much memory each turn of a recipe needs, as arithmetic: `raft check` prints it, and loads nothing for it.

Generator, reward model and trainer take turns on a GPU (core/device.py); on a CPU all are in memory together, and
only likelihoods and training end. Left out: what kernels work in, gaps of the allocator, CUDA itself, and attention
that keeps a matrix of tokens x tokens.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from raft.config.recipe import Loaded
from raft.core.errors import UserError
from raft.core.protocols import can_shard, makes, takes_pairs
from raft.generators.remote import Remote
from raft.generators.transformers import Transformers
from raft.generators.vllm import VLLM
from raft.launch import vllm_options, worker
from raft.launch.local import Local
from raft.launch.worker import STATE
from raft.models import hub, model_sizes, packing
from raft.models.loading import FILLED
from raft.rewards.ensemble import Ensemble
from raft.rewards.judge.judge import Judge
from raft.rewards.model import RewardModel
from raft.rewards.rule import Rule
from raft.rewards.runner import BATCH_TOKENS
from raft.trainers.distillation import Distillation
from raft.trainers.hf_trainer import TrainerOptions

KEPT = 3 * 10**9  # bytes of a GPU that no turn gets: CUDA itself, and what an engine keeps asleep (0.4 to 4 GB)
UTILIZATION = 0.92  # vLLM's default of gpu_memory_utilization
CARDS = {24: 25.7e9, 48: 51.5e9, 80: 85.5e9, 141: 150.7e9}  # bytes of RTX 4090, L40S, H100, H200 by their names
MOST_GPUS = 64  # up to which the smallest number that is enough is looked for
MORE = "give each worker more GPUs (launch.kind: ray, launch.gpus_per_worker)"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

Terms = dict[str, int | None]  # bytes by what they are for; None where config.json does not tell


@dataclass(frozen=True)
class Device:
    """Where the turns are taken, and how many bytes it has; `note` says what could not be found out.

    `count` is how many of its kind a process sees; what one does not hold is spread over them to score.
    """

    kind: Literal["cpu", "cuda"]
    memory: int
    note: str = ""
    count: int = 1

    def size(self, dtype: str) -> int:
        """Bytes of a number; `auto` is bfloat16 on a GPU and float32 on a CPU."""
        return BYTES.get(dtype, 2 if self.kind == "cuda" else 4)


@dataclass(frozen=True)
class Turn:
    """What a turn takes; without terms it is not known, and `note` says why.

    It can do without `spare` bytes of that; below 0 it lacks them. `lower` says what makes it smaller, and `instead`
    what makes its `fixed` bytes smaller, which the options in `lower` do not. What `ends` gives its memory back on a
    CPU, too. An engine, which `shares`, counts what is already taken, and leaves it alone.
    """

    name: str
    terms: Terms
    note: str = ""
    lower: str = ""
    fixed: int = 0
    instead: str = ""
    spare: int = 0
    ends: bool = False
    shares: bool = False

    def advice(self, room: int) -> str:
        """What to do where it does not fit so many bytes."""
        if self.fixed <= room:
            return self.lower
        larger = next((gb for gb, memory in CARDS.items() if fits(self, int(memory))), None)
        ways = [self.instead, "" if larger is None else f"use a GPU of {larger} GB"]
        return (
            f"{_gb(self.fixed)} of it are weights and their state: {', or '.join(filter(None, ways)) or 'split them'}"
        )

    @property
    def total(self) -> int:
        """Bytes of all known terms."""
        return sum(value or 0 for value in self.terms.values())

    @property
    def known(self) -> bool:
        """Whether all of it is known."""
        return bool(self.terms) and None not in self.terms.values()


def card(count: int, gigabytes: int) -> Device:
    """GPUs that are sold as ones of so many GB, whether or not they are here."""
    return Device("cuda", int(CARDS.get(gigabytes, gigabytes * 2**30)), count=count)


def device() -> Device:
    """The GPU that a run would use, by what its driver says, or else this machine."""
    host, visible = Device("cpu", vllm_options.host_memory()), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "" or version("torch").endswith("+cpu"):
        return host
    chosen = _numbers() if visible is None else visible.split(",")
    if size := _by_driver(chosen[0]) or _by_torch():
        return Device("cuda", size, count=len(chosen))
    if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        note = "there is a GPU, but neither nvidia-smi nor torch can say how much memory it has; this is for the CPU"
        return replace(host, note=note)
    return host


def _numbers() -> list[str]:
    """The numbers of all GPUs by nvidia-smi; that of the first where it does not say."""
    said = shutil.which("nvidia-smi") and _said(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"])
    return str(said or "0").split()


def _by_driver(chosen: str) -> int | None:
    """Bytes of a GPU by nvidia-smi; None where it does not say, or the GPU is cut into slices (MIG)."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["--query-gpu=memory.total,mig.mode.current", "--format=csv,noheader,nounits"]
    memory, _, slices = _said(["nvidia-smi", f"--id={chosen}", *query]).partition(", ")
    return int(memory) * 2**20 if memory.isdigit() and slices != "Enabled" else None


def _by_torch() -> int | None:
    """Bytes of the GPU, or the slice of one, that torch would use; asked in a process that leaves nothing behind."""
    if not Path("/dev/nvidia0").exists() and not shutil.which("nvidia-smi"):
        return None
    answer = _said([sys.executable, "-c", "import torch; print(torch.cuda.get_device_properties(0).total_memory)"])
    return int(answer) if answer.isdigit() else None


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def plan(loaded: Loaded, where: Device) -> list[Turn]:
    """The turns of a recipe, in their order. No weights are fetched: what the hub does not describe has but a note."""
    recipe, turns = loaded.recipe, list[Turn | None]()
    evaluation = recipe.evaluation if recipe.job == "align" else None
    if getattr(recipe, "generator", None) is not None:
        turns.append(_tried("generate", _generate, loaded, where))
    for name, key, reward in (
        ("score", "reward", getattr(recipe, "reward", None)),
        ("score gold", "evaluation.gold", getattr(evaluation, "gold", None)),
    ):
        turns.append(_tried(name, _score, loaded, where, name, key, reward))
    if evaluation and (evaluation.kl or evaluation.references or recipe.selection.kl_coef):
        turns.append(_tried("likelihoods", _likelihoods, loaded, where))
    if hasattr(recipe, "trainer"):
        turns.append(_tried("train", _train, loaded, where))
    return [turn for turn in turns if turn is not None]


def lines(turns: Sequence[Turn], where: Device) -> Iterator[str]:
    """A plan in words; nothing where no turn needs memory."""
    if turns:
        place = "the GPU" if where.kind == "cuda" else "this machine"
        yield f"  estimated memory per stage, in GB (1e9 bytes), of which {place} has {_gb(where.memory)}:"
        if where.note:
            yield f"    {where.note}"
    known = [turn for turn in turns if turn.terms]
    for turn in known:
        yield f"    {turn.name}: {_gb(turn.total)}"
        yield from (f"      {'?' if value is None else _gb(value):>7} {what}" for what, value in turn.terms.items())
    for note in dict.fromkeys(turn.note for turn in turns if not turn.terms):
        yield f"    not known yet for {', '.join(turn.name for turn in turns if turn.note == note)}: {note}"
    for turn in known:
        if turn.spare < 0:
            yield f"    the cache of {turn.name} does not hold one text; {turn.lower}"
    if known:
        do_fit = "fits" if all(turn.known for turn in turns) else "what is known fits"
        yield from (_by_turns if where.kind == "cuda" else _side_by_side)(known, where.memory, do_fit)


def _by_turns(turns: Sequence[Turn], memory: int, do_fit: str) -> Iterator[str]:
    """Whether each turn fits, and which would fit together, the largest sets alone."""
    wrong = [turn for turn in turns if not fits(turn, memory)]
    for turn in wrong:
        left = "" if turn.shares else f", of which {_gb(KEPT)} are left to CUDA and the sleeping engine"
        room = memory - (0 if turn.shares else KEPT)
        yield f"    does not fit: {turn.name}, {_of(turn.total, memory)}{left}; {turn.advice(room)}"
    largest = max(turns, key=lambda turn: turn.total)
    if not any(lacks(turn, memory) for turn in turns):
        yield f"    {do_fit}: the largest turn is {largest.name}, {_of(largest.total, memory)}"
    some = itertools.chain.from_iterable(itertools.combinations(turns, count) for count in range(2, len(turns) + 1))
    sets = [group for group in some if sum(turn.total - turn.spare for turn in group) <= memory - KEPT]
    widest = [group for group in sets if not any({*map(id, group)} < {*map(id, other)} for other in sets)]
    if widest:
        named = "; ".join(" + ".join(turn.name for turn in group) for group in widest)
        yield f"    could be loaded together, with room for one text in the cache: {named}; raft loads them in turn"


def enough(loaded: Loaded, gigabytes: int) -> str:
    """How many GPUs of so many GB hold every turn with Ray, as it is and with checkpointing.

    Empty where MOST_GPUS do not, or where a turn is not known.
    """
    recipe, ways = loaded.recipe, {}
    found = _enough(loaded, gigabytes)
    if found is not None:
        ways["launch.kind=ray"] = found
    trainer = getattr(recipe, "trainer", None)
    if isinstance(trainer, TrainerOptions) and not trainer.gradient_checkpointing:
        lighter = replace(loaded, recipe=replace(recipe, trainer=replace(trainer, gradient_checkpointing=True)))
        fewer = _enough(lighter, gigabytes)
        if fewer is not None and (found is None or fewer < found):
            ways["launch.kind=ray trainer.gradient_checkpointing=true"] = fewer
    said = [f"{count} with {how}" for how, count in ways.items()]
    return f"these would be enough: {', or '.join(said)}" if said else ""


def _enough(loaded: Loaded, gigabytes: int) -> int | None:
    """The smallest number that is known to be enough: more GPUs never take more of each."""
    from raft.launch.ray import Ray

    own, counts = loaded.recipe.launch, range(2, MOST_GPUS + 1)

    def hold(count: int) -> bool:
        launch, where = replace(own) if isinstance(own, Ray) else Ray(), card(count, gigabytes)
        launch.assume(count)
        if not launch.ranks():
            return False
        turns = plan(replace(loaded, recipe=replace(loaded.recipe, launch=launch)), where)
        return all(turn.known for turn in turns) and not any(lacks(turn, where.memory) for turn in turns)

    at = bisect_left(counts, True, key=hold)
    return counts[at] if at < len(counts) else None


def fits(turn: Turn, memory: int) -> bool:
    """Whether a turn fits on a GPU of so many bytes."""
    return turn.total <= memory - (0 if turn.shares else KEPT)


def lacks(turn: Turn, memory: int) -> bool:
    """Whether a turn is known not to fit, or to have no room for a single text."""
    return bool(turn.terms) and (turn.spare < 0 or not fits(turn, memory))


def _side_by_side(turns: Sequence[Turn], memory: int, do_fit: str) -> Iterator[str]:
    """Whether all that stays in memory fits, with the largest of what ends."""
    ending = max((turn for turn in turns if turn.ends), key=lambda turn: turn.total, default=None)
    together = [turn for turn in turns if not turn.ends or turn is ending]
    total, largest = sum(turn.total for turn in together), max(together, key=lambda turn: turn.total)
    kept = sum(turn.fixed for turn in together)
    verdict = f"at most {_of(total, memory)} at once ({' + '.join(turn.name for turn in together)})"
    advice = largest.lower
    if kept > memory:
        advice = f"{_gb(kept)} of it are weights and their state: use a GPU (raft check --gpu 80), or smaller models"
    yield f"    {do_fit}: {verdict}" if total <= memory else f"    does not fit: {verdict}; {advice}"


def _gb(count: int) -> str:
    """A number of GB; of less than 0.1 GB the number and the unit MB."""
    if 0 < count < 1e8:
        return f"{count / 1e6:.3g} MB"
    return f"{count / 1e9:.1f}" if count >= 1e10 else f"{count / 1e9:.3g}"


def _of(some: int, memory: int) -> str:
    """Some bytes of those that there are, with the unit of these where it is another one."""
    return f"{_gb(some)} of {_gb(memory)}{' GB' if _gb(some).endswith('MB') else ''}"


def _tried(name: str, make: Callable[..., Turn | None], *given: Any) -> Turn | None:
    """The turn, or why it is not known: files of models, and options that only vLLM and peft check, can be anything."""
    try:
        return make(*given)
    except UserError as why:
        return Turn(name, {}, str(why))
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError, re.error) as fault:
        return Turn(name, {}, f"config.json or an option does not fit this estimate ({type(fault).__name__}: {fault})")


def _folder(loaded: Loaded, part: Any) -> Path:
    """The folder of the model that a section names, or of one like it. UserError if neither is here."""
    if part.model is None:
        raise UserError(f"the run of {loaded.path} makes the model, from policy.config")
    path = Path(part.model)
    if path.is_dir():
        return path
    for need in loaded.needs:
        if need.folder == path.parent:  # it makes a model like the one that it starts from
            return _folder(need, need.recipe.policy)
    return _described(part.model, part.revision)


def _described(name: str, revision: str | None) -> Path:
    if (folder := hub.described(name, revision)) is None:
        raise UserError(
            f"{name} is not downloaded yet, and the hub did not give its config.json; a folder with that file "
            "alone can stand for it"
        )
    return folder


def _longest(recipe: Any) -> int | None:
    """Tokens of the longest prompt and response, where the recipe says so."""
    return (
        recipe.prompts.max_prompt_length + getattr(recipe.generator, "max_tokens", 0) if recipe.job == "align" else None
    )


def _product(what: str, count: int | None, unit: str, each: int | None) -> Terms:
    if count is None or each is None:
        return {f"{what} (not known)": None}
    return {f"{what} ({count:,} {unit} x {each:,} bytes)": count * each}


def _generate(loaded: Loaded, where: Device) -> Turn | None:
    generator = loaded.recipe.generator
    if isinstance(generator, Remote):
        return None
    if not isinstance(generator, VLLM | Transformers):
        raise UserError("generator.kind is one of your own")
    folder, size = _folder(loaded, loaded.recipe.policy), where.size(generator.dtype)
    if isinstance(generator, VLLM):
        return _engine("generate", "generator", folder, size, generator.max_model_len, generator.engine_args, where)
    model = model_sizes.read(folder)
    k = loaded.recipe.sampling.widest(generator.k) if loaded.recipe.job == "align" else generator.k
    tokens = generator.batch_size * k * (loaded.recipe.prompts.max_prompt_length + generator.max_tokens)
    terms = _product("weights", model.parameters(), "parameters", size)
    terms |= _product("cache", tokens, "tokens", model.cached(size))
    weights = model.parameters() * size
    return Turn("generate", terms, lower="lower generator.batch_size", fixed=weights, instead=MORE)


def _engine(
    name: str, key: str, folder: Path, size: int, context: int | None, options: Mapping[str, Any], where: Device
) -> Turn:
    """vLLM: on a GPU it takes a share of all there is, and what the weights leave of that is the cache."""
    model, context = model_sizes.read(folder), context or vllm_options.default_context(folder)
    gpus = max(1, int(options.get("tensor_parallel_size", 1)))
    count, token = -(-model.parameters() // gpus), model.cached(size)
    token = None if token is None else -(-token // gpus)
    setting, share = (
        f"{key}.engine_args.gpu_memory_utilization",
        float(options.get("gpu_memory_utilization", UTILIZATION)),
    )
    cache = int(options.get("kv_cache_memory_bytes") or max(0, share * where.memory - count * size))
    if where.kind == "cpu":
        cache, setting = int(vllm_options.environment()["VLLM_CPU_KVCACHE_SPACE"]) * 2**30, "VLLM_CPU_KVCACHE_SPACE"
    text = context * (token or 0)
    holds = f"room for {cache // text:,} texts of {context:,} tokens x {token:,} bytes" if text else "texts not known"
    terms = _product(_weights(gpus), count, "parameters", size) | {f"cache ({holds})": cache}
    lower, instead = f"set {setting}, or a shorter context", f"split it ({key}.engine_args.tensor_parallel_size)"
    return Turn(name, terms, lower=lower, fixed=count * size, instead=instead, spare=cache - text, shares=True)


def _score(loaded: Loaded, where: Device, name: str, key: str, reward: Any) -> Turn | None:
    if reward is None or isinstance(reward, Rule) or (isinstance(reward, Judge | RewardModel) and reward.url):
        return None
    if isinstance(reward, Ensemble):
        return _members(loaded, where, name, key, reward)
    if not isinstance(reward, Judge | RewardModel):
        raise UserError(f"{key}.kind is one of your own")
    folder = _folder(loaded, reward)
    if isinstance(reward, Judge):
        size, context = where.size(reward.engine_args.get("dtype", "auto")), reward.engine_args.get("max_model_len")
        return _engine(name, key, folder, size, context, reward.engine_args, where)
    model, size = model_sizes.read(folder), where.size(reward.dtype)
    count = model.parameters(output=False)
    gpus = _spread(loaded, where, count * size)
    count = -(-count // gpus)
    tokens = max(reward.max_tokens_per_batch or BATCH_TOKENS[where.kind], reward.max_length)
    terms = _product(_weights(gpus), count, "parameters", size)
    terms |= _product("forward pass", tokens, "tokens", model.passing(size))
    return Turn(name, terms, lower=f"lower {key}.max_tokens_per_batch", fixed=count * size, instead=MORE)


def _spread(loaded: Loaded, where: Device, weights: int) -> int:
    """Over how many GPUs the layers of a model go that scores, or says how likely responses are."""
    gpus: int = getattr(loaded.recipe.launch, "gpus_per_worker", where.count)
    return gpus if where.kind == "cuda" and weights > FILLED * where.memory else 1


def _weights(gpus: int) -> str:
    return "weights" if gpus == 1 else f"weights on each of {gpus} GPUs"


def _members(loaded: Loaded, where: Device, name: str, key: str, reward: Ensemble) -> Turn | None:
    """All members side by side; with `offload`, which is for a GPU, the largest alone."""
    turns = (_score(loaded, where, each, f"{key}.members.{each}", member) for each, member in reward.members.items())
    members = [turn for turn in turns if turn is not None]
    if not members:
        return None
    largest = max(members, key=lambda turn: turn.total)
    if reward.offload and where.kind == "cuda":
        return replace(largest, name=name)
    terms = {f"{turn.name}: {what}": value for turn in members for what, value in turn.terms.items()}
    spare, fixed = (sum(getattr(turn, of) for turn in members) for of in ("spare", "fixed"))
    lower, instead = (f"set {key}.offload: true, or {way}" for way in (largest.lower, largest.instead or MORE))
    return Turn(name, terms, lower=lower, fixed=fixed, instead=instead, spare=spare)


def _likelihoods(loaded: Loaded, where: Device) -> Turn:
    model = model_sizes.read(_folder(loaded, loaded.recipe.policy))
    tokens = max(packing.FORWARD[where.kind], _longest(loaded.recipe) or 0)
    gpus = _spread(loaded, where, 4 * model.parameters())
    count = -(-model.parameters() // gpus)
    terms = _product(_weights(gpus), count, "parameters", 4)
    terms |= _product("logits", tokens, "tokens", model.logits())
    lower = "leave out evaluation.kl, evaluation.references and selection.kl_coef"
    return Turn("likelihoods", terms, lower=lower, fixed=4 * count, instead=f"{MORE}, or {lower}", ends=True)


def _lengths(recipe: Any, where: Device) -> tuple[int, int]:
    """Tokens of the longest text that is trained on, or of both sides of a pair, and of a forward pass."""
    trainer = recipe.trainer
    longest = min(trainer.max_length, _longest(recipe) or trainer.max_length) * (2 if takes_pairs(trainer) else 1)
    return longest, max(trainer.max_tokens_per_microbatch or packing.FORWARD[where.kind], longest)


def _one_of_several(recipe: Any, where: Device) -> bool:
    """Whether there are more GPUs than the one of a run without Ray."""
    return where.count > 1 and type(recipe.launch) is Local


def idle(recipe: Any, where: Device) -> Iterator[str]:
    """A line if some of several GPUs are not used, or some ranks of a training never have a forward pass to make."""
    if _one_of_several(recipe, where):
        yield (
            f"launch.kind: local uses one of the {where.count} GPUs, and others only for a model that is split or "
            "spread; launch.kind=ray uses all of them"
        )
    trainer, ranks = getattr(recipe, "trainer", None), recipe.launch.ranks()
    if isinstance(trainer, TrainerOptions) and ranks > 1:
        longest, tokens = _lengths(recipe, where)
        passes = -(-trainer.batch_size * longest // tokens)
        if passes < ranks:
            yield (
                f"a step fills only {passes} of {ranks} {'GPUs' if where.kind == 'cuda' else 'workers'} "
                f"({trainer.batch_size} examples of up to {longest} tokens in passes of {tokens}); raise "
                "trainer.batch_size, or lower trainer.max_tokens_per_microbatch"
            )


def _teacher(trainer: Distillation) -> Path:
    """The folder of the teacher. UserError: it is not here."""
    path = Path(trainer.teacher)
    return path if path.is_dir() else _described(trainer.teacher, trainer.revision)


def _train(loaded: Loaded, where: Device) -> Turn:
    """With logits for every token of a forward pass, though only response tokens have them."""
    trainer = loaded.recipe.trainer
    if not isinstance(trainer, TrainerOptions):
        raise UserError("trainer.kind is one of your own")
    model = model_sizes.read(_folder(loaded, loaded.recipe.policy))
    to_policy = makes(trainer) == "policy"
    mixed, count = where.size(trainer.mixed_precision) == 2, model.parameters(output=to_policy)
    longest, tokens = _lengths(loaded.recipe, where)
    ranks, memory = loaded.recipe.launch.ranks(), where.memory if where.kind == "cuda" else None
    sharded = ranks > 1 and worker.shards(loaded.recipe.launch.shard, trainer, count, memory)
    if sharded:
        what = f"weights, gradients and AdamW ({count:,} parameters x {STATE} bytes / {ranks} ranks)"
        terms: Terms = {what: STATE * count // ranks}
        terms |= _product("gathered layers", model.together(), "parameters", 8)
    elif trainer.lora is None:
        terms = _product("weights, gradients and AdamW", count, "parameters", STATE)
    else:
        terms = _product("weights", count, "parameters", 4)
        terms |= _product("LoRA, its gradients and AdamW", model.adapters(trainer.lora), "parameters", STATE)
    if mixed and not (trainer.gradient_checkpointing and (sharded or trainer.lora is not None)):
        terms |= _product("their copies in bfloat16", count, "parameters", 2)
    fixed = sum(value or 0 for value in terms.values())
    terms |= _product("activations", tokens, "tokens", model.kept(mixed, trainer.gradient_checkpointing))
    terms |= {} if not to_policy else _product("logits", tokens, "tokens", model.logits())
    if isinstance(trainer, Distillation):
        teacher = model_sizes.read(_teacher(trainer))
        terms |= _product("teacher", teacher.parameters(), "parameters", 4)
        fixed += 4 * teacher.parameters()
        terms |= _product("logits of the teacher", tokens, "tokens", teacher.logits())
    ways = {
        f"set launch.kind=ray, which shards it over {where.count} GPUs": (
            _one_of_several(loaded.recipe, where) and can_shard(trainer)
        ),
        "set launch.shard: fsdp": ranks > 1 and not sharded and trainer.lora is None,
        f"lower trainer.{'max_tokens_per_microbatch' if tokens > longest else 'max_length'}": True,
        "set trainer.gradient_checkpointing: true": not trainer.gradient_checkpointing,
        "use trainer.lora": trainer.lora is None,
    }
    lower = [way for way, open_ in ways.items() if open_]
    instead = [way for way in lower if "shard" in way or "lora" in way]
    if where.kind == "cuda" and where.count == 1 and type(loaded.recipe.launch) is Local and can_shard(trainer):
        instead.append("shard it over several GPUs with launch.kind=ray")
    return Turn("train", terms, lower=", or ".join(lower), fixed=fixed, instead=", or ".join(instead), ends=True)
