"""Preference optimisation: every loss is compared with the formula of its paper, by plain calls of transformers."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import worlds
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuning import CONFIGS, SGD, TEXTS, difference, weights

from raft.core import registry
from raft.core.errors import UserError
from raft.core.options import Fault
from raft.core.records import Pair, Prompt, Response
from raft.models import chat_templates, from_scratch, loading, weight_check
from raft.trainers import trl
from raft.trainers.batches import Order
from raft.trainers.trl import DPO, KTO, PairTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

BETA = 0.3
MANY = {"max_tokens_per_microbatch": 40}  # a forward pass for each pair


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp("policies") / name for name in ("llama", "gpt2", "gemma2")}
    for name, folder in found.items():
        from_scratch.make(folder, TEXTS, CONFIGS[name], 280, seed=3)
    return found


def answer(seed: int, words: int, finish_reason: str = "stop") -> Response:
    return Response("", np.random.default_rng(seed).integers(10, 260, words).tolist(), None, finish_reason)


def swapped(pair: Pair) -> Pair:
    return Pair(pair.prompt_id, pair.rejected, pair.chosen, text=pair.text, messages=pair.messages)


CHAT = [{"role": "user", "content": "What is <|end|> in <|assistant|>?"}]  # spelled, so not the tokens
PAIRS = [
    Pair("0", answer(0, 9), answer(1, 4), text=TEXTS[0]),
    Pair("1", answer(2, 3), answer(3, 12, "length"), text=TEXTS[1]),
    Pair("2", answer(4, 6, "marker"), answer(5, 6), messages=CHAT),
    Pair("3", answer(6, 1), answer(7, 7, "marker"), text=TEXTS[2]),
    Pair("4", answer(8, 15), answer(9, 2), text=TEXTS[3]),
]


def train(
    kind: type[PairTrainer], start: Path, out: Path, pairs: list[Pair] = PAIRS, seed: int = 0, **options: Any
) -> dict[str, float]:
    options = {"lr_scheduler_type": "constant", "batch_size": 3, "beta": BETA, **options}
    return kind(**options).train(start, iter(pairs), out, seed, lambda done, total: None, lambda *drop: None)


def tokens(tokenizer: Any, pair: Pair) -> tuple[list[int], list[int], list[int]]:
    sides = (
        chat_templates.trained_tokens(tokenizer, one, pair.messages is not None) for one in (pair.chosen, pair.rejected)
    )
    return (chat_templates.encode_prompt(tokenizer, pair.prompt), *sides)


def logprob(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Of a whole response, alone in its batch."""
    logprobs = model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return sum(logprobs[len(prompt) + at - 1, token] for at, token in enumerate(response))


def ratios(policy: Any, reference: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    with torch.no_grad():
        before = logprob(reference, prompt, response)
    return logprob(policy, prompt, response) - before


def paired(loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The mean over pairs of a loss of log ratios and lengths, of the chosen and of the rejected response."""

    def formula(policy: Any, reference: Any, pairs: list[tuple]) -> torch.Tensor:
        found = []
        for prompt, chosen, rejected in pairs:
            sides = [ratios(policy, reference, prompt, one) for one in (chosen, rejected)]
            found.append(loss(*sides, len(chosen), len(rejected)))
        return torch.stack(found).mean()

    return formula


def desired(policy: Any, reference: Any, pairs: list[tuple]) -> torch.Tensor:
    """KTO with weights 1.5 and 0.5; the distance by the responses of the step, each with the prompt of the next."""
    own = [*((prompt, chosen) for prompt, chosen, _ in pairs), *((prompt, rejected) for prompt, _, rejected in pairs)]
    with torch.no_grad():
        others = zip((prompt for prompt, _ in own), (own[at - 1][1] for at in range(len(own))), strict=True)
        distance = max(0.0, float(np.mean([float(ratios(policy, reference, *other)) for other in others])))
    found = [ratios(policy, reference, *one) for one in own]
    good = [1.5 * (1 - torch.sigmoid(BETA * (one - distance))) for one in found[: len(pairs)]]
    bad = [0.5 * (1 - torch.sigmoid(BETA * (distance - one))) for one in found[len(pairs) :]]
    return torch.stack([*good, *bad]).mean()


def flipped(delta: torch.Tensor, share: float = 0.2) -> torch.Tensor:
    """Robust DPO (arXiv:2403.00409) for a share of pairs that are the wrong way round."""
    return (share * logsigmoid(-delta) - (1 - share) * logsigmoid(delta)) / (1 - 2 * share)


SIGMOID = paired(lambda c, r, *_: -logsigmoid(BETA * (c - r)))
FORMULAS: dict[str, tuple[type[PairTrainer], dict[str, Any], Callable[..., torch.Tensor]]] = {
    "sigmoid": (DPO, {}, SIGMOID),
    "ipo": (DPO, {"loss_type": "ipo"}, paired(lambda c, r, n, m: (c / n - r / m - 1 / (2 * BETA)) ** 2)),
    "hinge": (DPO, {"loss_type": "hinge"}, paired(lambda c, r, *_: torch.relu(1 - BETA * (c - r)))),
    "robust": (
        DPO, {"loss_type": "robust", "label_smoothing": 0.2}, paired(lambda c, r, *_: flipped(BETA * (c - r))),
    ),
    "kto": (KTO, {"desirable_weight": 1.5, "undesirable_weight": 0.5}, desired),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "name", "options"),
    [
        *((case, "llama", MANY) for case in FORMULAS),
        *(pytest.param(case, "gpt2", {}, marks=pytest.mark.nightly) for case in ("sigmoid", "kto")),
        pytest.param("kto", "gemma2", MANY, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_three_steps_of_gradient_descent_are_the_formulas(folders, tmp_path, case, name, options):
    kind, own, formula = FORMULAS[case]
    measured = train(kind, folders[name], tmp_path, batch_size=2, learning_rate=0.05, args=SGD, **own, **options)
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32, attn_implementation="eager").eval()
        for _ in range(2)
    )
    tokenizer = chat_templates.load_tokenizer(str(folders[name]))
    pairs, losses = [tokens(tokenizer, pair) for pair in PAIRS], []
    for members in map(Order(5, 2, 1, 0).step, range(3)):
        loss = formula(policy, reference, [pairs[member] for member in members])
        loss.backward()
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter -= 0.05 * parameter.grad
        policy.zero_grad()
        losses.append(float(loss.detach()))
    assert measured["train/loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert max(losses) - min(losses) > 5e-3, "later steps have another policy than the reference"
    moved = difference(weights(folders[name]), dict(policy.state_dict()))
    assert difference(weights(tmp_path), dict(policy.state_dict())) < 1e-3 * moved


def test_the_first_loss_of_dpo_is_log_2_and_that_of_kto_is_a_half(folders, tmp_path):
    for kind, first in ((DPO, np.log(2)), (KTO, 0.5)):
        found = train(kind, folders["llama"], tmp_path / kind.__name__, batch_size=5)
        assert found["train/loss"] == found["train/loss_first"] == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize("kind", [DPO, KTO])
def test_training_raises_the_margin_of_its_pairs_and_lowers_it_where_they_are_swapped(folders, tmp_path, kind):
    tokenizer = chat_templates.load_tokenizer(str(folders["llama"]))
    reference = loading.load_model(folders["llama"])
    margins = {}
    for name, pairs in {"as they are": PAIRS, "swapped": [swapped(pair) for pair in PAIRS]}.items():
        found = train(kind, folders["llama"], tmp_path / name, pairs, learning_rate=1e-3, num_train_epochs=3)
        policy = loading.load_model(tmp_path / name)
        margins[name] = np.mean([
            float(ratios(policy, reference, prompt, chosen) - ratios(policy, reference, prompt, rejected))
            for prompt, chosen, rejected in (tokens(tokenizer, pair) for pair in PAIRS)
        ])  # fmt: skip
        assert found["train/reward_chosen"] - found["train/reward_rejected"] == pytest.approx(found["train/margin"])
    assert margins["as they are"] > 1 and margins["swapped"] < -1


def test_trl_reads_the_tokens_that_were_generated_and_no_others(folders, tmp_path):
    tokenizer = chat_templates.load_tokenizer(str(folders["llama"]))
    pairs = trl.Pairs(tmp_path)
    pairs.read(tokenizer, PAIRS, (256, "trainer.max_length"), lambda *drop: None)
    losses = DPO().losses(loading.load_model(folders["llama"]), tokenizer, pairs, 256, tmp_path, 0)
    (batch,) = losses.batches(np.arange(5))
    masks = (batch[name].bool() for name in ("attention_mask", "completion_mask"))
    found = [
        (row[seen & ~learned].tolist(), row[learned].tolist())
        for row, seen, learned in zip(batch["input_ids"], *masks, strict=True)
    ]
    given = [tokens(tokenizer, pair) for pair in PAIRS]
    assert sorted(found[:5]) == sorted((prompt, chosen) for prompt, chosen, _ in given)
    assert sorted(found[5:]) == sorted((prompt, rejected) for prompt, _, rejected in given)
    end = tokenizer.eos_token_id
    assert pairs.response(2 * 2)[-1] == end != pairs.response(2 * 1 + 1)[-1], "an end only where there was one"
    assert pairs.prompt(2).count(end) == 1, "that of the turn; the one in the text is spelled"
    told = AutoTokenizer.from_pretrained(folders["llama"]).apply_chat_template(CHAT, add_generation_prompt=True)
    assert told["input_ids"].count(end) == 2, "TRL would read it as the token"


@pytest.mark.parametrize("kind", [DPO, KTO])
def test_trl_by_itself_makes_the_same_step_of_the_same_texts(folders, tmp_path, kind):
    """Out of rows as `job: label` writes them."""
    import trl as library
    from datasets import Dataset

    texts = [(TEXTS[at], " Yes, please" + "!" * at, " No" + " no" * (3 - at)) for at in range(4)]
    tokenizer = chat_templates.load_tokenizer(str(folders["llama"]))
    pairs = []
    for at, (text, *sides) in enumerate(texts):
        prompt = Prompt(str(at), text=text)
        found = [Response(one, chat_templates.encode_response(tokenizer, prompt, one), None, "stop") for one in sides]
        pairs.append(Pair(str(at), *found, text=text))
    train(kind, folders["llama"], tmp_path / "raft", pairs, batch_size=4, learning_rate=0.1, args=SGD)
    order = Order(4, 4, 1, 0).step(0)
    rows = [dict(zip(("prompt", "chosen", "rejected"), texts[at], strict=True)) for at in order]
    arguments = getattr(library, f"{kind.__name__}Config")(
        output_dir=str(tmp_path / "own"), beta=BETA, learning_rate=0.1, lr_scheduler_type="constant", **SGD,
        per_device_train_batch_size=4 if kind is DPO else 8, max_steps=1, bf16=False, use_cpu=True, report_to="none",
        train_sampling_strategy="sequential", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    policy = loading.load_model(folders["llama"])
    getattr(library, f"{kind.__name__}Trainer")(
        model=policy, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    ).train()
    moved = difference(weights(folders["llama"]), dict(policy.state_dict()))
    assert difference(weights(tmp_path / "raft"), dict(policy.state_dict())) < 1e-3 * moved


def test_the_program_of_the_page_trains_on_pairs_with_trl_alone(folders, tmp_path, monkeypatch):
    """On a machine without a GPU too."""
    page = (Path(__file__).parents[2] / "docs" / "dpo.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "pairs").mkdir(parents=True)
    (tmp_path / "outputs" / "my-run-export").symlink_to(folders["llama"])
    rows = [{"id": str(at), "prompt": TEXTS[at], "chosen": " Yes.", "rejected": " No."} for at in range(4)]
    (tmp_path / "outputs/pairs/pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exec(block, {})
    assert difference(weights(folders["llama"]), weights(tmp_path / "my-dpo"))


def test_what_cannot_be_learned_is_named_with_its_reason_and_never_cut(folders, tmp_path):
    dropped: list[tuple] = []
    pairs = [
        Pair("0", answer(0, 3), answer(1, 300), text=TEXTS[0], index=4),
        Pair("1", answer(0, 0), answer(1, 3), text=TEXTS[0], index=0),
        PAIRS[0],
    ]
    found = DPO(max_length=290).train(
        folders["llama"], iter(pairs), tmp_path, 0, lambda *step: None, lambda *drop: dropped.append(drop)
    )
    assert found["train/examples"] == 1
    assert [drop[:2] for drop in dropped] == [("0", 4), ("1", 0)]
    assert re.fullmatch(
        r"rejected: 3\d\d tokens, more than max_position_embeddings of the model \(256\)", dropped[0][2]
    )
    assert dropped[1][2] == "chosen: the response has no tokens"
    with pytest.raises(UserError, match=r"there is no pair to train on .*raise trainer\.max_length"):
        train(DPO, folders["llama"], tmp_path / "none", max_length=4)


@pytest.mark.parametrize("kind", [DPO, KTO])
def test_the_folder_is_that_of_the_start_but_for_weights_that_its_probe_knows(folders, tmp_path, kind):
    train(kind, folders["llama"], tmp_path, learning_rate=1e-2, save_dtype="bfloat16")
    probe = tmp_path / "probe.json"
    stored = json.loads(probe.read_text())
    assert weight_check.check(probe, weight_check.measure(loading.load_model(tmp_path), stored["tokens"]), 1e-5) < 1e-5
    with pytest.raises(weight_check.ProbeError, match="still holds"):
        weight_check.check(probe, weight_check.measure(loading.load_model(folders["llama"]), stored["tokens"]), 0.2)
    for name in ("generation_config.json", "config.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (folders["llama"], tmp_path))
        assert after == {**before, **({"dtype": "bfloat16"} if name == "config.json" else {})}
    assert weights(folders["llama"]).keys() == weights(tmp_path).keys()


def test_the_reference_is_the_policy_at_the_start_also_where_an_adapter_begins_elsewhere(folders, tmp_path):
    adapter = {"r": 4, "init_lora_weights": False}
    found = train(DPO, folders["llama"], tmp_path, batch_size=5, learning_rate=0.0, lora=adapter)
    policy, reference = loading.load_model(tmp_path), loading.load_model(folders["llama"])
    tokenizer = chat_templates.load_tokenizer(str(folders["llama"]))
    with torch.no_grad():
        expected = float(SIGMOID(policy, reference, [tokens(tokenizer, pair) for pair in PAIRS]))
    assert found["train/loss"] == pytest.approx(expected, abs=1e-4) != pytest.approx(np.log(2), abs=1e-2)


def test_an_adapter_on_the_output_layer_is_refused(folders, tmp_path):
    with pytest.raises(UserError, match=r"trainer\.lora: .* take it out of target_modules"):
        train(DPO, folders["llama"], tmp_path, lora={"target_modules": ["q_proj", "lm_head"]})


@pytest.mark.parametrize(
    "loss",
    [
        loss if loss in ("sigmoid", "exo_pair", "aot") else pytest.param(loss, marks=pytest.mark.nightly)
        for loss in get_args(trl.LOSSES)
    ],
)
def test_a_loss_of_trl_is_the_same_in_one_forward_pass_and_in_several(folders, tmp_path, loss):
    own = {"loss_type": loss, "label_smoothing": 0.1 if loss in trl.SMOOTHED else 0.0, "learning_rate": 1e-3}
    one, parted = (
        train(DPO, folders["llama"], tmp_path / name, **own, max_tokens_per_microbatch=tokens)
        for name, tokens in {"one": None, "parted": 60}.items()
    )
    assert parted == {name: pytest.approx(value, abs=1e-4, rel=1e-4) for name, value in one.items()}
    assert difference(weights(tmp_path / "one"), weights(folders["llama"])) > 1e-4


def test_the_losses_are_all_that_trl_has(folders, tmp_path):
    wrong: Any = "none"
    with pytest.raises(ValueError) as fault:
        train(DPO, folders["llama"], tmp_path, loss_type=wrong)
    assert sorted(re.findall(r"'(\w+)'", str(fault.value))) == sorted(get_args(trl.LOSSES))


def test_nothing_is_sent_and_nothing_is_printed(folders, tmp_path, monkeypatch, capfd):
    sent: list[Any] = []
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **what: sent.append(what))
    monkeypatch.delenv("CI", raising=False)
    train(KTO, folders["llama"], tmp_path)
    assert sent == [] and capfd.readouterr() == ("", "")


def faults(**options: Any) -> dict[str, str]:
    found: list[Fault] = []
    registry.component("trainer", {"kind": "dpo", **options}, "trainer", found)
    return {fault.key.removeprefix("trainer."): fault.message for fault in found}


def test_wrong_options_are_named_before_a_run(monkeypatch):
    assert "did you mean sigmoid" in faults(loss_type="sigmod")["loss_type"]
    assert "must be above 0" in faults(beta=0)["beta"]
    assert "padded rows" in faults(packing=True)["packing"]
    assert "only aot, aot_unpaired, exo_pair, robust read it" in faults(label_smoothing=0.1)["label_smoothing"]
    assert "such as 0.001" in faults(loss_type="exo_pair")["label_smoothing"]
    assert "lower it" in faults(loss_type="robust", label_smoothing=0.5)["label_smoothing"]
    assert "one forward pass" in faults(loss_type=["sigmoid", "sft"], **MANY)["max_tokens_per_microbatch"]
    assert "raise it" in faults(kind="kto", batch_size=1)["batch_size"]
    assert "did you mean ld_alpha" in faults(args={"ld_alfa": 0.5})["args.ld_alfa"]
    assert "raft sets this itself" in faults(args={"sync_ref_model": True})["args.sync_ref_model"]
    assert faults(loss_type=["sigmoid", "sft"], args={"loss_weights": [1.0, 0.2], "adam_beta2": 0.95}) == {}
    for args in ({"f_divergence_type": "cosine"}, {"loss_weights": [1.0, 2.0]}, {"adam_beta1": 2.0}):
        with pytest.raises(UserError, match=r"trainer\.args"):
            DPO(args=args).check()
    for kind in (DPO, KTO):
        kind(args={"adam_beta1": 0.8, "router_aux_loss_coef": 0.0}).check()
    monkeypatch.setattr(trl, "find_spec", lambda name: None)
    assert faults(args={"beta": 1}) == {
        "kind": "TRL is not installed here; install raft's extra trl (docs/install.md#extras)"
    }


def test_a_whole_run_learns_from_pairs_and_says_so_wherever_it_shows_them(tmp_path):
    trainer = {"kind": "dpo", "learning_rate": 1e-4, "batch_size": 4, "max_tokens_per_microbatch": 256}
    fewer = {"prompts": {"per_iteration": 8}, "evaluation": {"count": 4, "k": 1, "kl": False}}
    worlds.make_recipe(tmp_path, iterations=1, selection={"kind": "all-pairs"}, trainer=trainer, **fewer)
    done = worlds.raft(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    it = tmp_path / "outputs/tiny/iterations/001"
    rows = [json.loads(line) for line in open(it / "selected.jsonl")]
    assert f"trained on {len(rows)} pairs" in done.stdout
    best, ids = rows[0]["index"], rows[0]["prompt_id"]
    shown = worlds.raft(tmp_path, "show", "outputs/tiny", ids).stdout.partition("training prompt")[2]
    marks = [line[1] for line in shown.splitlines()[1:5]]
    picked = [row for row in rows if row["prompt_id"] == ids]
    assert marks[best] == "*" and marks.count("-") == len(
        {row["rejected_index"] for row in picked} - {row["index"] for row in picked}
    )
    metrics = [json.loads(line) for line in open(tmp_path / "outputs/tiny/metrics.jsonl")]
    assert metrics[1]["train/examples"] == metrics[0]["selection/examples"] == len(rows)
    assert metrics[1]["train/loss_first"] == pytest.approx(np.log(2), abs=1e-6)
    assert {"train/accuracy", "train/margin"} < metrics[1].keys()
    for command in ("report", "export --policy=1"):
        assert worlds.raft(tmp_path, *command.split(), "outputs/tiny").returncode == 0
    card = (tmp_path / "outputs/tiny-export/README.md").read_text()
    assert "arXiv:2305.18290" in card and "- dpo\n" in card
    for file in ("policy/probe.json", "policy/model.safetensors"):
        assert (it / file).is_file()
