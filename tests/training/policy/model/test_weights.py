"""Steps of 5e-7 move float32 weights under bfloat16 passes; what storage keeps of them is measured."""

import pytest
import torch

from paragone_training.policy.gradient import train_step
from paragone_training.policy.methods.registry import method_of
from paragone_training.policy.model.logprobs import policy_logprobs
from paragone_training.policy.model.weights import load_policy, update_kept, weight_samples
from paragone_training.policy.recipe import PolicyTrainingSection
from paragone_training.policy.rows import TrainingPair, read_json_file
from tests.training.policy.tiny_policy import recipe


def trained_on_two_pairs(folder, policy, *, steps, dtype="float32", lora=None, bf16=True):
    training = PolicyTrainingSection(
        epochs=float(steps), pairs_per_step=2, pairs_per_pass=2, learning_rate=5e-7, schedule="constant", warmup=0.0,
        bf16=bf16, noise_limit=1e9, log_steps=steps,
    )  # fmt: skip
    items = [((3, 40, 1), (41, 42, 2)), ((3, 44, 1), (45, 46, 2)), ((3, 40, 1), (47, 2)), ((3, 44, 1), (48, 2))]
    base = policy_logprobs(policy, items, training)
    pairs = [
        TrainingPair(*items[n], items[n + 2][1], (0.9, 0.0, 0.0, base[n], base[n + 2], base[n], base[n + 2]))
        for n in range(2)
    ]
    train_step(
        policy, pairs, folder, method=method_of("inpo", eta=0.5, tau=0.1), training=training, lora=lora, raw=False,
        dtype=dtype, seed=0,
    )  # fmt: skip
    return read_json_file(folder / "update.json")


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_small_steps_change_the_weights_under_bfloat16_passes(tmp_path, policy_folder, stored, caplog):
    policy = load_policy(str(policy_folder), bf16=True)
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    update = trained_on_two_pairs(tmp_path, policy, steps=60, dtype=stored)

    assert all(weight.dtype == torch.float32 for weight in policy.model.parameters())
    changed = [(policy.model.state_dict()[name] != old).float().mean() for name, old in before.items()]
    if stored == "float32":
        # Every weight of a layer; of the embeddings, rows of tokens that no pair has stay where they are.
        assert max(changed) == 1.0
        assert update["update_kept"] == pytest.approx(1.0)
        assert "survives storage" not in caplog.text
    else:
        assert update["update_kept"] < 0.9
        assert "of the update survives storage in bfloat16" in caplog.text


def test_what_storage_keeps_of_an_update():
    before = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0])}
    # bfloat16 has steps of 2^-7 above 1: the first move is kept whole, the second lost, and two are none.
    after = {"w": torch.tensor([1.0 + 2**-7, 1.0 + 2**-10, 1.0, 1.0])}
    kept = update_kept(before, after, "bfloat16")
    assert kept["weights_changed"] == 0.25
    assert kept["update_kept"] == pytest.approx(2**-14 / (2**-14 + 2**-20))
    assert update_kept(before, after, "float32") == {"update_kept": 1.0, "weights_changed": 0.5}
    assert update_kept(before, before, "float32") == {"update_kept": 0.0, "weights_changed": 0.0}


def test_samples_are_the_same_places_of_a_tensor_at_each_call():
    tensor = torch.arange(100_000.0)
    (first,), (second,) = weight_samples({"w": tensor}).values(), weight_samples({"w": tensor + 1}).values()
    assert 4096 <= len(first) < 5000
    assert torch.equal(first + 1, second)


def test_a_bfloat16_policy_trains_in_bfloat16_passes_unless_the_recipe_says_otherwise(policy_folder, prompts_file):
    assert recipe("inpo", policy_folder, prompts_file, policy__dtype="bfloat16").training.bf16
    assert not recipe("inpo", policy_folder, prompts_file).training.bf16
    said = recipe("inpo", policy_folder, prompts_file, policy__dtype="bfloat16", training__bf16=False)
    assert not said.training.bf16
