"""What a model folder says of itself, looked at before anything is built: config.json, adapters, sizes.

Model folders come from strangers. transformers and vLLM believe config.json: a million layers are built, a list where
a number belongs is a traceback, an adapter beside the weights is applied to them without a word. Nothing here imports
torch or builds a model.
"""

import json
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raft.core.errors import UserError
from raft.core.options import text_of
from raft.models import checkpoint

MOST = 10_000_000  # bytes of a config.json that is read
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
SIDES = ("vocab_size", "num_labels", "hidden_size", "n_embd", "d_model")  # each is a side of some tensor
COUNTS = (*LAYERS, *SIDES, "max_position_embeddings", "n_positions", "type_vocab_size")
ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SHARES = re.compile(r"\w*(dropout|pdrop)(_prob|_rate|_p)?")
ADAPTER = "adapter_config.json"
INSIDE = ("best", "policy", "reward-model")  # where a run has its model
TOWERS = re.compile(r"text_config|.*(vision|image|video|audio|speech|vq|vlm|dit|qformer|encoder|vocoder).*_config")
MERGE = (
    'python -c "import peft, transformers; peft.AutoPeftModelFor{task}.from_pretrained({folder!r})'
    ".merge_and_unload().save_pretrained({out!r}); "
    'transformers.AutoTokenizer.from_pretrained({folder!r}).save_pretrained({out!r})"'
)


def read(file: Path) -> dict[str, Any]:
    """A JSON file of a model folder. UserError if it cannot be read or holds no mapping."""
    damaged = "so the model folder is damaged; make it again, or name another"
    try:
        if file.stat().st_size > MOST:
            raise UserError(f"{file} has {file.stat().st_size:,} bytes, which no configuration has, {damaged}")
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as fault:
        raise _closed(file, fault) from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8, {damaged}") from None
    except RecursionError:
        raise UserError(f"{file} is nested too deep, {damaged}") from None
    except ValueError as fault:
        raise UserError(f"{file} is not JSON ({fault}), {damaged}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds not a mapping but {type(content).__name__}, {damaged}")
    return content


def positions(folder: Path) -> int | None:
    """How many tokens the model of a folder has positions for by its config.json, None where that says nothing."""
    config = read(folder / "config.json")
    text = config.get("text_config") or config
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    return next((text[name] for name in names if isinstance(text.get(name), int)), None)


def _closed(path: Path, fault: OSError) -> UserError:
    return UserError(f"{path} cannot be read ({fault.strerror}); give yourself the right to, or name another")


def whole(folder: Path) -> Path:
    """The folder, if it holds a model and no adapter; UserError says what it is instead, and what to do."""
    try:
        described, adapter = (folder / "config.json").is_file(), (folder / ADAPTER).is_file()
    except OSError as fault:
        raise _closed(folder, fault) from None
    if adapter:
        raise UserError(_adapter(folder, described and checkpoint.has_weights(folder)))
    if not described:
        inside = [str(path) for path in (folder / name for name in INSIDE) if (path / "config.json").exists()]
        hint = f"it is a run; give its model: {' or '.join(inside)}" if inside else "give what save_pretrained wrote"
        raise UserError(f"{folder} holds no config.json, so it is not a model folder; {hint}")
    return folder


def _adapter(folder: Path, beside: bool) -> str:
    if beside:
        files = ", ".join(sorted(file.name for file in folder.glob("adapter_*")))
        return (
            f"{folder} holds the files of an adapter ({files}) beside the weights of a model, and transformers would "
            "add it to them without a word. If it is already merged into them, remove these files (of a hub model: "
            "hf download NAME --exclude 'adapter_*' --local-dir FOLDER); if not, keep the adapter in a folder of its "
            "own and merge it (docs/models.md)"
        )
    given = read(folder / ADAPTER)
    task = "SequenceClassification" if given.get("task_type") == "SEQ_CLS" else "CausalLM"
    base = given.get("base_model_name_or_path")
    of = f" for {base}" if isinstance(base, str) and base else ""
    merge = MERGE.format(task=task, folder=str(folder), out=f"{folder.name}-merged")
    return f"{folder} is an adapter{of}, not a whole model; merge the two and name the result: {merge}"


def check(folder: Path) -> dict[str, Any]:
    """config.json, if its values have the types and sizes that the weights allow. UserError: what is wrong, and where.

    Of safetensors only the headers are read. Old weights tell nothing before they are read; they bound a size by their
    bytes.
    """
    config = read(folder / "config.json")
    for fault in _types(config):
        raise UserError(f"{folder / 'config.json'}: {fault}; the model folder is damaged, name another")
    generation = folder / "generation_config.json"
    if generation.is_file():
        for fault in _token_ids(read(generation)):
            raise UserError(f"{generation}: {fault}; correct the file")
    if not checkpoint.has_weights(folder):
        return config
    for fault in _sizes(config, *checkpoint.extent(folder)):
        raise UserError(f"{folder / 'config.json'}: {fault}; the weights do not belong to it, name another model")
    return config


def _parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The config, and that of its language model if it is separate, each with the prefix of its keys."""
    yield "", config
    if isinstance(config.get("text_config"), dict):
        yield "text_config.", config["text_config"]


def _types(config: Mapping[str, Any]) -> Iterator[str]:
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        yield f"architectures is {_short(names)}, no list of names"
    if not isinstance(config.get("model_type", ""), str):
        yield f"model_type is {_short(config['model_type'])}, no name"
    if not isinstance(config.get("id2label") or {}, dict):
        yield f"id2label is {_short(config['id2label'])}, not a mapping"
    if config.get("transformers_weights") is not None:
        yield "transformers_weights names the file of the weights, and raft reads none but model.safetensors"
    for before, part in _parts(config):
        for key in COUNTS:
            value = part.get(key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                yield f"{before}{key} is {_short(value)}, not a whole number"
        for key, value in part.items():
            if SHARES.fullmatch(key) and type(value) in (int, float) and not 0 <= value <= 1:
                yield f"{before}{key} is {_short(value)}, no share from 0 to 1"
        for fault in _token_ids(part):
            yield before + fault


def _token_ids(config: Mapping[str, Any]) -> Iterator[str]:
    for key in ENDS:
        value = config.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in ids):
            yield f"{key} is {_short(value)}, no token id or list of them"


def _sizes(config: Mapping[str, Any], tensors: int, longest: int) -> Iterator[str]:
    """Sizes that no tensor has: `tensors` are all of them, `longest` is the longest side of any."""
    for before, part in _parts(config):
        for key in LAYERS:
            if (part.get(key) or 0) > tensors:
                yield f"{before}{key} is {part[key]:,}, but the weights are {tensors:,} tensors"
        for key in SIDES:
            if (part.get(key) or 0) > longest:
                yield f"{before}{key} is {part[key]:,}, but no tensor has a side of more than {longest:,}"
    if len(config.get("id2label") or {}) > longest:
        yield f"id2label names {len(config['id2label']):,} outputs, but no tensor has a side of more than {longest:,}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def untrainable(folder: Path) -> str | None:
    """Why the model of a folder cannot be trained as a language model, None where nothing speaks against it."""
    config = read(folder / "config.json")
    name = (config.get("architectures") or [config.get("model_type", "this model")])[0]
    if config.get("quantization_config"):
        given = config["quantization_config"]
        method = given.get("quant_method", "its own method") if isinstance(given, dict) else given
        return (
            f"{folder} has quantised weights (quantization_config: {method}), which cannot be trained; name the model "
            "that it was made from, in float32, bfloat16 or float16"
        )
    towers = sorted(key for key, value in config.items() if TOWERS.fullmatch(key) and isinstance(value, dict))
    if towers:
        return (
            f"{folder} is a {name}, which reads more than text ({', '.join(towers)} in its config.json); raft trains "
            "language models and would lose the rest. Save its language model by itself and name that (docs/models.md)"
        )
    if config.get("is_encoder_decoder") or str(name).endswith("ForConditionalGeneration"):
        return f"{folder} is a {name}, which has an encoder; raft trains decoders alone, name a causal language model"
    return None


def carries_state(folder: Path) -> bool:
    """Whether the architecture carries a state from token to token (Mamba, linear attention): packed texts would see
    each other. Known by the mark that transformers' own source has for it."""
    config, spec = read(folder / "config.json"), find_spec("transformers")
    kind = re.sub(r"\W", "_", str(config.get("model_type", "")))
    folders = [kind, kind.removesuffix("_text")]
    assert spec is not None and spec.submodule_search_locations, "transformers is not installed"
    models = Path(spec.submodule_search_locations[0]) / "models"
    files = (models / name / f"modeling_{name}.py" for name in folders if name)
    source = next((file.read_text(encoding="utf-8") for file in files if file.is_file()), "")
    return re.search(r"^ *_is_stateful = True$", source, re.MULTILINE) is not None


def chat_template(folder: Path) -> str | None:
    """The text of a model's chat template, the one called default where it has several; None if it has none."""
    if (file := folder / "chat_template.jinja").is_file():
        return text_of(str(file))
    found = _tokenizer_config(folder).get("chat_template")
    if isinstance(found, list):  # of {name, template}
        named = {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default") or next(iter(named.values()), None)
    return found if isinstance(found, str) and found else None


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that chat templates write by name, such as bos_token."""
    found = {name: value for name, value in _tokenizer_config(folder).items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return read(file) if file.is_file() else {}
