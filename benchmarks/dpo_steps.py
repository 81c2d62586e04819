"""A step of DPO by this lab and by TRL, of the same model on the same pairs; and one of SFT on the same sequences."""

from __future__ import annotations

import time
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
from models import Shape, our_gpt, own_folder, random_ids, transformers_gpt2
from worker import Work

if TYPE_CHECKING:
    from gptlab.data.batch import Batch, Rows

RATE, BETA = 1e-6, 0.1  # TRL's own


class RandomAnswers:
    """data.batch.Rows of the sequences `ids` (sequences, tokens + 1), of which the second half is learned; or, two and
    two of them, `pairs`."""

    def __init__(self, ids: np.ndarray, *, pairs: bool) -> None:
        self.ids, self.pairs = ids, pairs
        self.context = ids.shape[1] - 1
        self.scored = len(self) if pairs else len(ids) * (self.context - self.context // 2)

    def __len__(self) -> int:
        return len(self.ids) // 2 if self.pairs else len(self.ids)

    def batch(self, rows: np.ndarray, epoch: int = 0) -> Batch:
        import torch

        from gptlab.data.batch import IGNORE, make_batch

        sequences = torch.from_numpy(self.ids.reshape(len(self), -1, self.context + 1)[rows]).flatten(0, 1)
        targets = sequences[:, 1:].clone()
        targets[:, : self.context // 2] = IGNORE
        return make_batch(sequences[:, :-1], targets, torch.from_numpy(rows), pairs=self.pairs)


def random_pairs(shape: Shape, pairs: int) -> np.ndarray:
    """(2 · pairs, context + 1) int64: the chosen and the rejected sequence of each pair, whose first half is the same.
    The last id, EOS, is not among them."""
    ids = random_ids(2 * pairs * (shape.context + 1), shape.vocab_size - 1).astype(np.int64)
    ids = ids.reshape(2 * pairs, shape.context + 1)
    ids[1::2, : shape.context // 2] = ids[::2, : shape.context // 2]
    return ids


def our_step(
    shape: Shape,
    objective: str,
    pairs: int,
    precision: str = "float32",
    recomputed: bool = False,
    rank: int = 0,
    micro_batch_size: int = 0,
) -> Work:
    """Steps of the lab's own loop by DPO, or by SFT of the same sequences. `micro_batch_size`: pairs; 0: all."""
    import torch
    from lab import as_in_a_run

    from gptlab.data.batch import ValuedRows
    from gptlab.device import current_memory, measure_peak_flops, pick_precision
    from gptlab.evaluation.preference_scores import answer_log_probs
    from gptlab.model.lora import LoraSettings, add_lora
    from gptlab.objectives.dpo import DPOObjective, DPOSettings
    from gptlab.objectives.language import LanguageObjective
    from gptlab.training.loop import Engine, descend, gradients
    from gptlab.training.optimizer import Optimizer, OptimizerSettings

    place = torch.device("cpu")
    chosen = pick_precision(precision, place)
    as_in_a_run("cpu", precision)
    measure_peak_flops(place, chosen.dtype)  # as a run does
    of_pairs, found, before = objective == "DPO", {}, current_memory()
    rows: Rows = RandomAnswers(random_pairs(shape, pairs), pairs=of_pairs)
    micro_batch_size = micro_batch_size or len(rows)
    if of_pairs:
        started = time.perf_counter()
        said = answer_log_probs(
            our_gpt(shape), rows, device=place, precision=chosen, micro_batch_size=micro_batch_size
        )  # by a model that is gone afterwards, as a run's reference is
        rows = ValuedRows(rows, {"reference": torch.from_numpy(said)})
        found["prepare_seconds"] = time.perf_counter() - started
    model = our_gpt(shape)
    model.activation_checkpointing = recomputed
    if rank:
        add_lora(model, LoraSettings(rank=rank, alpha=2 * rank))
    engine = Engine(
        model=model.train(),
        objective=DPOObjective(DPOSettings(beta=BETA)) if of_pairs else LanguageObjective(),
        optimizer=Optimizer(model, OptimizerSettings(kind="adamw", learning_rate=RATE, weight_decay=0.0)),
        device=place,
        precision=chosen,
        micro_batch_size=micro_batch_size,
        gradient_clip=1.0,
    )

    def step() -> None:
        batch = rows.batch(np.arange(len(rows)))
        sums = gradients(engine, batch)
        descend(engine)
        found.setdefault("first_loss", float(sums["loss"]) / batch.weight)

    return Work(step, facts=lambda: grown_since(before) | found)


def trl_step(
    shape: Shape,
    pairs: int,
    precision: str = "float32",
    recomputed: bool = True,
    precomputed: bool = False,
    rank: int = 0,
) -> Work:
    """Steps of TRL's DPOTrainer, whose callbacks take the time; what it does before and after them is not counted."""
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from gptlab.device import current_memory

    class Clock(TrainerCallback):
        seconds = started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.started

    disable_progress_bars()
    data, tokenizer = Dataset.from_dict(in_words(random_pairs(shape, pairs))), word_tokenizer(shape.vocab_size)
    arguments = DPOConfig(
        str(own_folder()), per_device_train_batch_size=pairs, max_steps=1, learning_rate=RATE, beta=BETA, use_cpu=True,
        bf16=precision == "bfloat16", gradient_checkpointing=recomputed, precompute_ref_log_probs=precomputed,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    layers = ["c_attn", "c_proj", "c_fc"]  # all linear layers of the blocks, as ours
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers, fan_in_fan_out=True) if rank else None
    clock, before, found = Clock(), current_memory(), {}
    torch.manual_seed(0)
    model = transformers_gpt2(shape)
    started = time.perf_counter()
    trainer = DPOTrainer(
        model, None if precomputed or rank else deepcopy(model), arguments, train_dataset=data,
        processing_class=tokenizer, peft_config=lora, callbacks=[clock],
    )  # fmt: skip
    if precomputed:
        found["prepare_seconds"] = time.perf_counter() - started

    def step() -> float:
        trainer.train()
        found.setdefault("first_loss", trainer.state.log_history[0]["loss"])
        return clock.seconds

    return Work(step, facts=lambda: grown_since(before) | found)


def word_tokenizer(vocab_size: int) -> Any:
    """A tokenizer of transformers whose words are their own ids, since the trainer reads text; the last id is EOS."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    eos = "<eos>"
    words = {str(number): number for number in range(vocab_size - 1)} | {eos: vocab_size - 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token=eos))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)


def in_words(ids: np.ndarray) -> dict[str, list[str]]:
    """The same pairs for TRL, which closes an answer by EOS: so it has the first context - 1 tokens of each."""
    context = ids.shape[1] - 1

    def text(part: np.ndarray) -> str:
        return "".join(f"{number} " for number in part)

    return {
        "prompt": [text(row[: context // 2]) for row in ids[::2]],
        "chosen": [text(row[context // 2 : context - 1]) for row in ids[::2]],
        "rejected": [text(row[context // 2 : context - 1]) for row in ids[1::2]],
    }


def grown_since(before: int) -> dict[str, Any]:
    """By how much this process has grown at its peak, `before` being its bytes then."""
    import torch

    from gptlab.device import peak_memory

    return {"grown_megabytes": (peak_memory(torch.device("cpu")) - before) / 1e6}
