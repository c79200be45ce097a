"""A loaded model: what it embeds, how it compares, and what it refuses."""

import numpy as np
import pytest
import torch

from paragone_models import PreferenceModel, load_model
from paragone_models.errors import NonFiniteError, PreferencesUnavailableError, TextError
from paragone_models.model import Provenance
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import conversation
from tests.models import tiny
from tests.models.files.test_saving import SPECS


def model_of(spec: ModelSpec) -> PreferenceModel:
    provenance = Provenance("tiny", "nowhere", None, "0" * 64, {})
    return PreferenceModel(tiny.make_network(spec), spec, None, provenance, max_batch_tokens=100)


def test_embedding_keeps_the_order_and_equals_one_by_one(gated):
    sequences = tiny.sequences(12)
    together = gated.embed(sequences, [2] * 12)
    assert (together.shape, together.dtype) == ((12, 6), torch.float32)
    for row, one in enumerate(sequences):
        torch.testing.assert_close(together[row], gated.embed([one], [2])[0], atol=1e-5, rtol=1e-5)


def test_the_gate_is_read_at_the_end_of_the_prompt(gated):
    sequence = [5, 6, 7, 8, 9, 10]
    assert not torch.allclose(gated.embed([sequence], [2]), gated.embed([sequence], [4]))
    blocks = gated.embed([[5, 6, 7, 8], [5, 6, 11, 12, 13]], [2, 2]).reshape(2, 3, 2)
    hidden = gated.network.last_hidden(torch.tensor([[5, 6]]))[0, 1]
    weights = torch.softmax(gated.network.head.prompt_head.weight @ hidden, dim=-1)
    # A unit vector times the root of the gate: the weighted squares of each block add to 1.
    torch.testing.assert_close((blocks.square().sum(-1) / weights).sum(-1), torch.ones(2), atol=1e-4, rtol=1e-4)


def test_no_sequences_give_no_representations(gated):
    assert gated.embed([], []).shape == (0, 6)


@pytest.mark.parametrize(
    ("token_ids", "prompt_lengths", "reason"),
    [
        ([[5, 6]], [], "1 sequences and 0 prompt lengths"),
        ([[]], [0], "token_ids is empty"),
        ([[5, 400]], [1], r"token ids must lie in \[0, 400\)"),
        ([[5, -1]], [1], r"token ids must lie in \[0, 400\)"),
        ([[5] * 129], [1], "129 tokens; the limit is 128"),
        ([[5, 6]], [3], "must lie between 0 and the 2 tokens"),
        ([[5, 6]], [-1], "must lie between 0 and the 2 tokens"),
    ],
)
def test_tokens_that_cannot_be_embedded_are_refused(gated_folder, token_ids, prompt_lengths, reason):
    model = load_model(gated_folder, device="cpu")
    vocabulary = model.network.config.vocab_size
    token_ids = [[vocabulary if token == 400 else token for token in one] for one in token_ids]
    with pytest.raises(ValueError, match=reason.replace("400", str(vocabulary))):
        model.embed(token_ids, prompt_lengths)


def test_mean_pooling_refuses_a_prompt_without_a_response():
    with pytest.raises(ValueError, match="mean pooling needs tokens after the prompt"):
        model_of(SPECS["bradley-terry"]).embed([[5, 6]], [2])


def test_a_representation_that_is_no_number_is_an_error_and_not_a_score(gated_folder):
    model = load_model(gated_folder, device="cpu")
    with torch.no_grad():
        model.network.backbone.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        model.embed([[5, 6]], [1])
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        model.score("Why?", ["Because."])


@pytest.mark.parametrize("kind", SPECS)
def test_logits_in_torch_equal_the_comparators(kind):
    model = model_of(SPECS[kind])
    vectors = model.embed(tiny.sequences(6), [2] * 6)
    first, second = vectors[:3], vectors[3:]
    logits = model.logit(first, second)
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(
        logits.numpy(), model.comparator.logit(first.numpy(), second.numpy()), rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(model.logit(second, first), -logits)
    torch.testing.assert_close(model.logit(first[0], second[0]), logits[0])


@pytest.mark.parametrize("kind", SPECS)
def test_logits_of_other_shapes_are_refused(kind):
    model = model_of(SPECS[kind])
    right, longer = torch.zeros(2, model.spec.dimension), torch.zeros(2, model.spec.dimension + 2)
    for first, second in [(right, longer), (longer, right), (longer, longer), (right, right[:1])]:
        with pytest.raises(ValueError, match=f"equal and end in dimension {model.spec.dimension}"):
            model.logit(first, second)
    with pytest.raises(ValueError, match="end in dimension"):
        model.logit(torch.tensor(1.0), torch.tensor(1.0))


def test_scores_of_a_text_come_from_as_many_passes_as_responses(gated):
    responses = ["Because.", "No.", "", "Because."]
    answer = gated.score("Why?", responses)
    readings = gated.reader.read([conversation("Why?", response) for response in responses])
    expected = gated.embed([one.token_ids for one in readings], [one.prompt_length for one in readings])
    torch.testing.assert_close(answer.representations, expected)
    assert answer.rewards is None
    assert answer.attributes == {}
    assert answer.dropped_tokens == [0, 0, 0, 0]
    assert np.array_equal(answer.probabilities + answer.probabilities.T, np.ones((4, 4)))
    assert answer.probabilities[0, 3] == pytest.approx(0.5, abs=1e-4)


def test_no_responses_have_no_scores(gated):
    answer = gated.score("Why?", [])
    assert answer.representations.shape == (0, 6)
    assert answer.probabilities.shape == (0, 0)


def test_what_was_cut_is_said_or_refused(gated):
    answer = gated.score("why " * 300, ["Because.", "No."])
    assert all(dropped > 100 for dropped in answer.dropped_tokens)
    with pytest.raises(TextError) as caught:
        gated.score("why " * 300, ["Because."], truncation="error")
    assert caught.value.code == "conversation_truncated"


def test_an_unreadable_response_is_named(gated):
    with pytest.raises(TextError) as caught:
        gated.score("", ["Because."])
    assert caught.value.code == "empty_prompt"
    with pytest.raises(TextError, match="no place for tools"):
        gated.score("Why?", ["Because."], tools=[{"type": "function"}])


def test_ratings_without_weights_have_attributes_and_no_preferences(tmp_path):
    spec = ModelSpec(kind="regression", dimension=2, attributes=("helpful", "verbose"), max_length=64)
    model = load_model(tiny.save_own(tmp_path, spec), device="cpu")
    answer = model.score("Why?", ["Because.", "No."])
    assert answer.rewards is None
    assert answer.probabilities is None
    assert list(answer.attributes) == ["helpful", "verbose"]
    np.testing.assert_array_equal(answer.attributes["verbose"], answer.representations[:, 1].numpy())
    with pytest.raises(PreferencesUnavailableError, match="give weights="):
        model.logit(answer.representations[0], answer.representations[1])


def test_rewards_attributes_and_preferences_of_a_helpsteer_model(tmp_path):
    model = load_model(tiny.save_own(tmp_path, SPECS["helpsteer"]), device="cpu")
    answer = model.score([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}], ["a", "b"])
    np.testing.assert_array_equal(answer.rewards, answer.representations[:, 0].numpy())
    np.testing.assert_array_equal(answer.attributes["a"], answer.representations[:, 1].numpy())
    expected = 1 / (1 + np.exp(answer.rewards[1] - answer.rewards[0]))
    assert answer.probabilities[0, 1] == pytest.approx(expected)


def test_a_reward_model_prefers_what_it_rewards():
    model = model_of(SPECS["bradley-terry"])
    vectors = model.embed(tiny.sequences(2), [1, 1])
    better, worse = sorted(vectors, key=float, reverse=True)
    assert model.logit(better, worse) > 0
