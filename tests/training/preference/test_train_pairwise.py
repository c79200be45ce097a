"""Training of models that read both responses at once and answer A or B, from rows to the answers of a server."""

import json

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from transformers import LlamaConfig, LlamaForCausalLM

from paragone_evaluation.readers import Pair
from paragone_models import load_model
from paragone_models.losses import preference_loss
from paragone_models.symmetrise import symmetrised
from paragone_models.text.pairs import letter_ids
from paragone_service.app import create_app
from paragone_service.config import Settings
from paragone_training.errors import DataError, RecipeError
from paragone_training.preference.agreement import HeldOut, represented
from paragone_training.preference.backbone import build_model
from paragone_training.preference.card import Rows
from paragone_training.preference.head_fit import check_head_recipe
from paragone_training.preference.objective import Objective
from paragone_training.preference.recipe import Recipe
from paragone_training.preference.train_model import check_run, fit, train_model
from paragone_training.settings import parse
from tests.models.files.test_pairs import ANSWERING, make_pairrm
from tests.models.tiny import make_tokenizer
from tests.training.arguments import BAD, GOOD, pairs, write


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny causal LM with random weights, and a chat template that leads to the answer."""
    folder, tokenizer = tmp_path_factory.mktemp("lm"), make_tokenizer(ANSWERING)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=384,
        initializer_range=0.1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe(source, **sections):
    tables = {
        "model": {"kind": "pairwise", "max_length": 384},
        "backbone": {"source": str(source)},
        "data": {"train": ["pairs.jsonl"]},
        "training": {"epochs": 10, "learning_rate": 1e-2, "batch_responses": 18, "log_steps": 1},
    }
    for name, values in sections.items():
        tables[name] = {**tables.get(name, {}), **values}
    return parse(Recipe, tables)


def rows(held_out=1):
    made = pairs(4)
    last = [pair for pair in made if pair.group in {f"q{3 - at}_yes" for at in range(held_out)}]
    return Rows([pair for pair in made if pair not in last], held_out_pairs=last)


@pytest.fixture(scope="module", params=["lora", "full"])
def trained(source, tmp_path_factory, request):
    """A folder that was trained on pairs."""
    folder = tmp_path_factory.mktemp(request.param)
    file = write(
        folder / "pairs.jsonl",
        [
            {name: getattr(pair, name) for name in ("prompt", "first", "second", "strength", "group")}
            | {"split": "test" if pair.group == "q3_yes" else "train"}
            for pair in pairs(4)
        ],
    )
    sections = (
        {"lora": {"rank": 8, "alpha": 16.0}} if request.param == "lora" else {"training": {"learning_rate": 1e-2}}
    )
    settled = recipe(source, data={"train": [str(file)]}, **sections)
    return train_model(settled, folder / "model")


def test_the_server_prefers_what_was_learned_and_says_the_training_log_odds(trained):
    folder = trained
    model = load_model(folder, name="letters", device="cpu", dtype="float32")
    assert (model.kind, model.spec.symmetrise) == ("pairwise", "mean-probability")
    prompt, good, bad = "Should school 9 teach chess?", f"{GOOD[0]} 9", f"{BAD[0]} 9"
    ways = [{"prompt": prompt, "first": good, "second": bad}, {"prompt": prompt, "first": bad, "second": good}]
    with TestClient(create_app(Settings(), {"letters": model}), "http://localhost") as client:
        answer = client.post("/v1/preferences", json={"pairs": ways}).json()["preferences"]
        table = client.post("/v1/tournaments", json={"groups": [{"prompt": prompt, "responses": [bad, good]}]}).json()
    assert answer[0]["probability"] > 0.65
    assert answer[0]["probability"] + answer[1]["probability"] == 1
    assert table["tournaments"][0]["ranking"] == [1, 0]
    # The same pair through the code of training, on the model that was saved.
    parts = build_model(recipe(folder), ())
    assert parts.start.identity == model.identity
    labelled = Rows([Pair(prompt, good, bad, 1.0)])
    outcome = fit(recipe(folder, training={"learning_rate": 1e-9, "epochs": 1}), labelled, folder / "again")
    readings = [model.reader.read([pair])[0] for pair in (texts(prompt, good, bad), texts(prompt, bad, good))]
    values = represented(outcome.model.network, readings, pad_id=outcome.model.pad_id)
    logit = float(outcome.objective.logits(values, torch.tensor([[0, 1]])))
    assert logit == pytest.approx(answer[0]["logit"], abs=1e-4)


def texts(prompt, first, second):
    from paragone_models.text.pairs import PairText

    said = [
        ({"role": role, "content": text},)
        for role, text in (("user", prompt), ("assistant", first), ("assistant", second))
    ]
    return PairText(*said)


def test_log_card_and_history_have_agreement_and_position_bias(trained):
    folder = trained
    card = (folder / "README.md").read_text()
    assert "reads both responses in one prompt and answers A or B" in card
    assert "| this model | 1.000 |" in card
    history = json.loads((folder / "checkpoints" / "history.json").read_text())
    last = [line for line in history if "eval_orders_agree" in line][-1]
    assert f"| {last['eval_orders_agree']:.3f} |" in card
    assert last["eval_orders_agree"] == 1.0
    assert abs(last["eval_first_shown"] - 0.5) < 0.2
    assert "the output rows of A and B" in card


def test_it_starts_with_what_the_language_model_would_answer(source):
    parts = build_model(recipe(source), ())
    network = LlamaForCausalLM.from_pretrained(source).eval()
    (reading,) = parts.reader.read([texts("Close it?", "Yes.", "No, never.")])
    with torch.inference_mode():
        logits = network(torch.tensor([reading.token_ids])).logits[0, -1]
    first, second = letter_ids(parts.tokenizer)
    found = represented(parts.network, [reading], pad_id=parts.pad_id)
    assert float(found) == pytest.approx(float(logits[first] - logits[second]), abs=1e-5)


def test_both_orders_are_to_be_right_each_by_itself():
    objective = Objective("pairwise", 2.0, "distil", symmetrise="mean-logit")
    outputs, chances = torch.tensor([[3.0], [-1.0], [0.5], [0.25]]), torch.tensor([0.8, 0.3])
    marked = torch.tensor([[0, 1], [3, 2]])
    each = [
        (
            preference_loss(torch.tensor([one / 2]), chances[at : at + 1])
            + preference_loss(torch.tensor([-other / 2]), chances[at : at + 1])
        )
        / 2
        for at, (one, other) in enumerate([(3.0, -1.0), (0.25, 0.5)])
    ]
    torch.testing.assert_close(objective.losses(outputs, marked, 6 * chances - 3), torch.cat(each))
    # A model that always says the first one is right half the time, and its mean says nothing.
    bias = torch.tensor([[4.0], [4.0]])
    assert objective.logits(bias, torch.tensor([[0, 1]])).tolist() == [0.0]
    assert float(objective.losses(bias, torch.tensor([[0, 1]]), torch.tensor([3.0]))) > 1
    for how in ("mean-logit", "mean-probability", "sum"):
        asked = Objective("pairwise", 2.0, symmetrise=how)
        expected = symmetrised(np.array([3.0]), np.array([-1.0]), how) / 2
        np.testing.assert_allclose(asked.logits(outputs, marked[:1]), expected, rtol=1e-6)


def test_the_order_of_a_pair_is_measured_on_held_out_rows(source, tmp_path):
    outcome = fit(recipe(source, training={"learning_rate": 1e-9, "epochs": 1}), rows(), tmp_path)
    model = outcome.model
    both = []
    for pair in rows().held_out_pairs:
        readings = [
            model.reader.read([texts(pair.prompt, *ways)])[0]
            for ways in ((pair.first, pair.second), (pair.second, pair.first))
        ]
        both.append(represented(model.network, readings, pad_id=model.pad_id)[:, 0].double().numpy())
    both = np.array(both)
    assert outcome.after.orders.agree == pytest.approx(np.mean(np.sign(both[:, 0]) == -np.sign(both[:, 1])))
    assert outcome.after.orders.first_shown == pytest.approx(np.mean(1 / (1 + np.exp(-both))), abs=1e-6)
    assert outcome.before.orders.first_shown == pytest.approx(outcome.after.orders.first_shown, abs=1e-5)
    assert HeldOut([], [], (), 0).examined(model.network, outcome.objective).orders is None


def test_every_pair_is_two_sequences_of_a_batch(source, tmp_path):
    outcome = fit(recipe(source, training={"epochs": 1, "batch_responses": 6}), rows(), tmp_path)
    # 27 pairs are 54 sequences, in batches of 6.
    assert max(line.get("step", 0) for line in outcome.history) == 9


def test_a_pair_that_is_too_long_is_refused_or_left_out(source, tmp_path):
    long = {"prompt": "Why?", "first": "because " * 400, "second": "No.", "strength": 1}
    short = [{"prompt": "Why?", "first": f"yes {at}", "second": "No.", "strength": 1} for at in range(2)]
    file = str(write(tmp_path / "rows.jsonl", [*short, long]))
    with pytest.raises(DataError, match="shorten them"):
        check_run(recipe(source, data={"train": [file]}))
    told = check_run(recipe(source, data={"train": [file], "bad_rows": "leave-out"}))
    assert any("conversation_truncated" in line for line in told)


def test_rows_with_tools_are_refused(source, tmp_path):
    tools = [{"type": "function", "function": {"name": "search"}}]
    row = {"prompt": "Why?", "first": "yes", "second": "No.", "strength": 1, "tools": tools}
    file = str(write(tmp_path / "rows.jsonl", [row]))
    with pytest.raises(DataError, match="reads no tools"):
        check_run(recipe(source, data={"train": [file]}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"backbone": {"source": None}}, "backbone.source is missing; a pairwise model answers by the letters"),
        ({"model": {"pooling": "mean"}}, "leave model.pooling and model.head out"),
        ({"model": {"head": "new"}}, "leave model.pooling and model.head out"),
        ({"model": {"gate": True}}, "model.gate scales"),
        ({"model": {"kind": "bradley-terry", "symmetrise": "sum"}}, "model.symmetrise is of models that read both"),
        ({"loss": {"name": "margin"}}, "a pairwise model has regular, scaled, soft, score, distil"),
        ({"loss": {"centre": 0.1}}, "learns no reward"),
    ],
)
def test_what_a_pairwise_recipe_cannot_say_is_refused(source, sections, message):
    with pytest.raises(RecipeError, match=message):
        recipe(source, **sections)


def test_no_head_is_fitted_to_pairs_and_markers_are_not_trained(source, tmp_path):
    with pytest.raises(RecipeError, match="no states of single ones"):
        check_head_recipe(recipe(source))
    make_pairrm(tmp_path)
    with pytest.raises(RecipeError, match="reads pairs by markers"):
        build_model(recipe(tmp_path), ())
