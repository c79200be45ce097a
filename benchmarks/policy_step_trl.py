"""The peer of policy_step.py: TRL's DPOTrainer, run by an interpreter that has trl, told what to do on its input.

    PYTHON policy_step_trl.py FOLDER      # started by policy_step.py

FOLDER has settings.json, pairs.jsonl (prompt, chosen, rejected: text) and model/ with a tokenizer in it. Every line of
input is one epoch, answered with a line of JSON; the first one also writes tokens.jsonl: what TRL made of the pairs,
and its reference columns.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import torch

os.environ["TQDM_DISABLE"] = "1"
warnings.simplefilter("ignore")
import datasets  # noqa: E402
import trl  # noqa: E402
from training_setup import Watch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, utils  # noqa: E402


def main():
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text())
    torch.set_num_threads(settings["threads"])
    datasets.disable_progress_bars()
    utils.logging.disable_progress_bar()
    if settings["trl_compact"]:
        # Which positions have logits; the kernel itself asks for Triton under its own name.
        trl.trainer.utils._use_triton = lambda _: True  # noqa: SLF001
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print goes to the error stream
    for number, _ in enumerate(sys.stdin):
        trainer, watch = epoch(folder, settings)
        if number == 0:
            write_tokens(folder / "tokens.jsonl", trainer)
        trainer.train()
        answer.write(json.dumps({"seconds": watch.seconds, "trl": trl.__version__}) + "\n")
        answer.flush()


def epoch(folder, settings):
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    watch = Watch()
    config = trl.DPOConfig(
        output_dir=str(folder / "trl"),
        precompute_ref_log_probs=True,
        beta=settings["beta"],
        max_length=None,
        num_train_epochs=1,
        per_device_train_batch_size=settings["pairs_per_pass"],
        gradient_accumulation_steps=settings["pairs_per_step"] // settings["pairs_per_pass"],
        learning_rate=settings["learning_rate"],
        bf16=settings["bf16"],
        gradient_checkpointing=settings["gradient_checkpointing"],
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    trainer = trl.DPOTrainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, watch


def write_tokens(path, trainer):
    """Write the token ids that TRL trains on, and its reference columns, for ours to train on the very same."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    batches = []
    collate = trainer.data_collator
    for row in trainer.train_dataset:
        batch = {name: tensor.to(trainer.model.device) for name, tensor in collate([row]).items()}
        with torch.no_grad():
            chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
        batches.append({name: row[name] for name in names} | {"chosen": float(chosen), "rejected": float(rejected)})
    path.write_text("".join(json.dumps(row) + "\n" for row in batches))


if __name__ == "__main__":
    main()
