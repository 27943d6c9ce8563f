"""The loop as people write it today, twice: the yardsticks of benchmarks/iteration.py.

    python benchmarks/by_hand.py engine WORK.json    a new vLLM engine each time, scores in padded batches, Trainer
    python benchmarks/by_hand.py generate WORK.json  policy.generate for each prompt, rewards one by one, blocks of text

WORK.json: policy, reward (folders), prompts and held_out (texts), k, held_out_k, max_tokens, num_train_epochs,
learning_rate, batch_size, context, iterations, out (a folder). An iteration does what is measured of raft: answers of
the policy to training and held-out prompts, their rewards, the best of each group, training, saving. Nothing else is
recorded, checked or resumable. A JSON line of seconds comes out for each iteration.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

seconds: list[dict[str, float]] = []


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Adds to this iteration's seconds of a stage."""
    began = time.perf_counter()
    yield
    seconds[-1][stage] = seconds[-1].get(stage, 0.0) + time.perf_counter() - began


def with_engine(work: dict[str, Any]) -> None:
    """A new engine for each policy."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CONFIGURE_LOGGING": "0", "VLLM_CPU_KVCACHE_SPACE": "2"}
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        Trainer,
        TrainingArguments,
        pipeline,
    )
    from vllm import LLM, SamplingParams

    judge = AutoModelForSequenceClassification.from_pretrained(work["reward"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(work["policy"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.decode([judge.config.pad_token_id])
    reward = pipeline("text-classification", model=judge, tokenizer=tokenizer, function_to_apply="none", batch_size=32)

    def answer(policy: Path, asked: list[tuple[list[str], int]]) -> list[list[list[str]]]:
        with timed("start"):
            engine = LLM(str(policy), dtype="float32", enforce_eager=True, max_model_len=work["context"])
        with timed("generate"):
            found = []
            for prompts, k in asked:
                params = SamplingParams(n=k, temperature=1.0, max_tokens=work["max_tokens"])
                groups = engine.generate(prompts, params, use_tqdm=False)
                found.append([[one.text for one in group.outputs] for group in groups])
        del engine
        gc.collect()
        return found

    def score(prompts: list[str], answers: list[list[str]]) -> list[list[float]]:
        with timed("score"):
            flat = reward([prompt + text for prompt, group in zip(prompts, answers, strict=True) for text in group])
        scores = iter([one["score"] for one in flat])
        return [[next(scores) for _ in group] for group in answers]

    def train(policy: Path, out: Path, examples: list[tuple[str, str]]) -> None:
        with timed("train"):
            model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
            rows = []
            for prompt, text in examples:
                asked, said = tokenizer(prompt)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
                said += [tokenizer.eos_token_id]
                rows.append({"input_ids": asked + said, "labels": [-100] * len(asked) + said})

            def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
                longest = max(len(row["input_ids"]) for row in batch)
                filled = {"input_ids": 0, "labels": -100}
                tensors = {
                    name: torch.tensor([row[name] + [empty] * (longest - len(row[name])) for row in batch])
                    for name, empty in filled.items()
                }
                lengths = torch.tensor([len(row["input_ids"]) for row in batch])
                return {**tensors, "attention_mask": (torch.arange(longest) < lengths[:, None]).long()}

            arguments = TrainingArguments(
                str(out),
                num_train_epochs=work["num_train_epochs"],
                learning_rate=work["learning_rate"],
                report_to="none",
                per_device_train_batch_size=work["batch_size"],
                save_strategy="no",
                logging_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            Trainer(model, arguments, data_collator=collate, train_dataset=rows).train()
        with timed("save"):
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)

    loop(work, answer, score, train)


def with_generate(work: dict[str, Any]) -> None:
    """transformers alone."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        Trainer,
        TrainingArguments,
        default_data_collator,
    )

    judge = AutoModelForSequenceClassification.from_pretrained(work["reward"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(work["policy"])

    def answer(policy: Path, asked: list[tuple[list[str], int]]) -> list[list[list[str]]]:
        with timed("start"):
            model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
        with timed("generate"), torch.inference_mode():
            return [[one_group(model, prompt, k) for prompt in prompts] for prompts, k in asked]

    def one_group(model: Any, prompt: str, k: int) -> list[str]:
        ids = tokenizer(prompt, return_tensors="pt")
        made = model.generate(
            **ids, do_sample=True, top_k=0, temperature=1.0, num_return_sequences=k,
            max_new_tokens=work["max_tokens"], pad_token_id=0,
        )  # fmt: skip
        return tokenizer.batch_decode(made[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)

    def score(prompts: list[str], answers: list[list[str]]) -> list[list[float]]:
        with timed("score"), torch.inference_mode():
            return [
                [float(judge(**tokenizer(prompt + text, return_tensors="pt")).logits) for text in group]
                for prompt, group in zip(prompts, answers, strict=True)
            ]

    def train(policy: Path, out: Path, examples: list[tuple[str, str]]) -> None:
        with timed("train"):
            model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
            ids = [
                token
                for prompt, text in examples
                for token in tokenizer(prompt + text + tokenizer.eos_token)["input_ids"]
            ]
            size = 256
            blocks = [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)]
            rows = [{"input_ids": block, "labels": block} for block in blocks]
            arguments = TrainingArguments(
                str(out),
                num_train_epochs=work["num_train_epochs"],
                learning_rate=work["learning_rate"],
                report_to="none",
                per_device_train_batch_size=8,
                save_strategy="no",
                logging_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            Trainer(model, arguments, data_collator=default_data_collator, train_dataset=rows).train()
        with timed("save"):
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)

    loop(work, answer, score, train)


def loop(work: dict[str, Any], answer: Any, score: Any, train: Any) -> None:
    """Best of K, trained on, as in the textbook."""
    policy, prompts, held_out = Path(work["policy"]), work["prompts"], work["held_out"]
    for iteration in range(1, work["iterations"] + 1):
        seconds.append({})
        began = time.perf_counter()
        answers, others = answer(policy, [(prompts, work["k"]), (held_out, work["held_out_k"])])
        scores = score(prompts, answers)
        score(held_out, others)
        best = [group[max(range(len(group)), key=row.__getitem__)] for group, row in zip(answers, scores, strict=True)]
        out = Path(work["out"]) / str(iteration)
        train(policy, out, list(zip(prompts, best, strict=True)))
        policy = out
        seconds[-1]["whole"] = time.perf_counter() - began
        print(json.dumps({name: round(value, 2) for name, value in seconds[-1].items()}), flush=True)


if __name__ == "__main__":
    {"engine": with_engine, "generate": with_generate}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
