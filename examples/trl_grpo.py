"""GRPO with TRL: the reward is the win rate within the group, and a callback compares the policy with references.

    pip install -c constraints.txt '.[service]' trl
    paragone serve --model NAME=SOURCE
    python examples/trl_grpo.py --url http://127.0.0.1:8000 --policy Qwen/Qwen3-0.6B

Tried with TRL 1.16.0.
"""

import argparse
from collections.abc import Sequence

from datasets import Dataset
from transformers import GenerationConfig
from trl import GRPOConfig, GRPOTrainer

from paragone import Client
from paragone.adapters.trl import WinRateCallback, reward_function

PROMPTS = [
    "Should every school have a garden?",
    "Close the main street to cars?",
    "Is it fair to tax sweets?",
    "Should every school have a garden?",  # a prompt may occur twice: groups go by their number
]
REFERENCES = [
    ["It keeps kids fit, and they learn to work in teams."],
    ["Families walk through it on every market day."],
]


def train(url: str, policy: str, output: str, *, model: str | None = None, steps: int = 2) -> GRPOTrainer:
    """Train for some steps and return the trainer, whose ``state.log_history`` says what happened."""
    client = Client(url, model=model)
    reward = reward_function(client, num_generations=4)
    config = GRPOConfig(
        output_dir=output,
        num_generations=4,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=4,
        max_completion_length=16,
        max_steps=steps,
        logging_steps=1,
        learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
        bf16=False,
    )
    trainer = GRPOTrainer(
        model=policy,
        args=config,
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )
    greedy = GenerationConfig(max_new_tokens=16, do_sample=False, pad_token_id=trainer.processing_class.pad_token_id)
    trainer.add_callback(
        WinRateCallback(
            client, trainer, prompts=PROMPTS[:2], references=REFERENCES, every=steps, generation_config=greedy
        )
    )
    trainer.train()
    client.close()
    return trainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Train with the addresses of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--policy", default="Qwen/Qwen3-0.6B")
    parser.add_argument("--model", help="id of a hosted model; the server's default without it")
    parser.add_argument("--output", default="trl-grpo")
    parser.add_argument("--steps", type=int, default=2)
    chosen = parser.parse_args(arguments)
    trainer = train(chosen.url, chosen.policy, chosen.output, model=chosen.model, steps=chosen.steps)
    for logs in trainer.state.log_history:
        print({name: value for name, value in logs.items() if "paragone" in name or "win_rate" in name})


if __name__ == "__main__":
    main()
