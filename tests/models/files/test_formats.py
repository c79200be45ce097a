"""The layouts that can be hosted, held against transformers' own numbers and an independent published forward."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from paragone_models import load_model
from paragone_models.errors import ModelLoadError
from paragone_models.files.saving import save_model
from paragone_models.text.reader import conversation
from tests.models import tiny

DECODERS = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gpt2"]
ENCODERS = ["bert", "roberta", "xlm-roberta", "deberta-v2"]


def classifier(folder, model_type: str, labels: int = 1, **values):
    """Write a tiny random classifier as transformers does, and return it."""
    torch.manual_seed(11)
    sizes = {
        "vocab_size": 400,
        "hidden_size": tiny.HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 130,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    if model_type == "deberta-v2":
        sizes |= {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]}
        sizes |= {
            "type_vocab_size": 0,
            "position_biased_input": False,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        }
    if model_type in ("roberta", "xlm-roberta"):
        sizes["pad_token_id"] = 1
    config = AutoConfig.for_model(model_type, **{**sizes, "num_labels": labels, **values})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    return model


def own_logits(model, sequences) -> torch.Tensor:
    """What transformers itself says about sequences, one by one."""
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([one])).logits for one in sequences])


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("model_type", DECODERS)
def test_a_decoders_rewards_equal_transformers(tmp_path, model_type, labels):
    theirs = classifier(tmp_path, model_type, labels)
    sequences = tiny.sequences(6)
    ours = load_model(tmp_path, device="cpu")
    assert ours.kind == ("bradley-terry" if labels == 1 else "regression")
    assert ours.network.causal
    assert ours.spec.max_length == 130
    vectors = ours.embed(sequences, [2] * 6)
    torch.testing.assert_close(vectors, own_logits(theirs, sequences), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("model_type", ENCODERS)
def test_an_encoders_rewards_equal_transformers(tmp_path, model_type, labels):
    theirs = classifier(tmp_path, model_type, labels)
    sequences = [[2, *one] for one in tiny.sequences(6)]
    ours = load_model(tmp_path, device="cpu")
    assert ours.first_token
    assert not ours.network.causal
    vectors = ours.embed(sequences, [2] * 6)
    torch.testing.assert_close(vectors, own_logits(theirs, sequences), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", [*ENCODERS, "gpt2", "llama"])
def test_the_longest_conversation_has_positions_for_all_its_tokens(tmp_path, model_type):
    theirs = classifier(tmp_path, model_type)
    ours = load_model(tmp_path, device="cpu")
    assert ours.spec.max_length == (128 if "roberta" in model_type else 130)
    longest = [2, *range(4, 3 + ours.spec.max_length)]
    torch.testing.assert_close(ours.embed([longest], [2]), own_logits(theirs, [longest]), atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelLoadError, match="the backbone has positions for"):
        load_model(tmp_path, device="cpu", max_length=ours.spec.max_length + 1)


@pytest.mark.parametrize("model_type", ["llama", "bert", "roberta", "deberta-v2"])
def test_a_half_precision_classifier_has_a_float32_head(tmp_path, model_type):
    theirs = classifier(tmp_path, model_type)
    sequences = tiny.sequences(3)
    ours = load_model(tmp_path, device="cpu", dtype="bfloat16")
    assert all(parameter.dtype == torch.float32 for parameter in ours.network.head.parameters())
    assert {parameter.dtype for parameter in ours.network.backbone.parameters()} == {torch.bfloat16}
    rewards = ours.embed(sequences, [2] * 3)
    torch.testing.assert_close(rewards, own_logits(theirs, sequences), atol=0.5, rtol=0.2)
    assert not torch.equal(rewards, rewards.bfloat16().float())


@pytest.mark.parametrize("pad", [None, 7])
def test_the_last_token_is_found_by_length_where_padding_and_end_are_the_same_token(tmp_path, pad):
    theirs = classifier(tmp_path, "llama", pad_token_id=pad, eos_token_id=7)
    sequences = [[5, 6, 7], [5, 6, 7, 7], [8, 7, 9, 10, 7], [7]]
    ours = load_model(tmp_path, device="cpu").embed(sequences, [1] * 4)
    for row, one in enumerate(sequences):
        hidden = theirs.model(input_ids=torch.tensor([one])).last_hidden_state[0, -1]
        torch.testing.assert_close(ours[row], theirs.score(hidden), atol=1e-5, rtol=1e-5)


def test_attributes_are_named_by_the_classifiers_labels(tmp_path):
    names = {0: "helpful", 1: "verbose"}
    classifier(tmp_path, "llama", 2, id2label=names, label2id={name: index for index, name in names.items()})
    model = load_model(tmp_path, device="cpu")
    assert model.spec.attributes == ("helpful", "verbose")
    assert model.spec.weights is None


def test_one_label_can_be_a_rating(tmp_path):
    classifier(tmp_path, "llama", 1)
    model = load_model(tmp_path, device="cpu", kind="regression", weights=[2.0])
    assert (model.kind, model.spec.attributes, model.spec.weights) == ("regression", ("LABEL_0",), (2.0,))


@pytest.mark.parametrize("kind", ["general-preference", "helpsteer", "hybrid"])
def test_a_classifier_is_not_taken_for_another_kind(tmp_path, kind):
    classifier(tmp_path, "llama", 1)
    with pytest.raises(ModelLoadError, match=f"which is bradley-terry, not {kind}"):
        load_model(tmp_path, device="cpu", kind=kind)


def test_several_labels_are_no_bradley_terry_reward(tmp_path):
    classifier(tmp_path, "llama", 2)
    with pytest.raises(ModelLoadError, match="2 labels, which is regression, not bradley-terry"):
        load_model(tmp_path, device="cpu", kind="bradley-terry")


def drop(folder, name: str):
    tensors = load_file(folder / "model.safetensors")
    value = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return value


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("llama", "score.weight"), ("bert", "classifier.weight"), ("bert", "bert.pooler.dense.bias")],
)
def test_a_classifier_whose_head_is_missing_is_refused(tmp_path, model_type, name):
    classifier(tmp_path, model_type)
    drop(tmp_path, name)
    with pytest.raises(ModelLoadError, match=rf"lacks 1 weights \({name}\).*random numbers"):
        load_model(tmp_path, device="cpu")


def test_a_classifier_whose_head_has_layers_of_its_own_is_refused(tmp_path):
    classifier(tmp_path, "llama")
    weight = drop(tmp_path, "score.weight")
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "score.0.weight": weight}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"score\.0\.weight .* belongs to a head of a form that is not known here"):
        load_model(tmp_path, device="cpu")


def test_a_head_with_more_rows_than_labels_is_refused(tmp_path):
    classifier(tmp_path, "llama", 3)
    config = json.loads((tmp_path / "config.json").read_text())
    for field in ("id2label", "label2id"):
        config.pop(field, None)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_labels": 2}))
    with pytest.raises(ModelLoadError, match=r"weights of other shapes than its config: .*score\.weight"):
        load_model(tmp_path, device="cpu")


def test_an_encoder_whose_head_is_not_known_is_refused(tmp_path):
    classifier(tmp_path, "electra")
    with pytest.raises(ModelLoadError, match="is a electra classifier, whose head is neither"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("model_type", ["bert", "deberta-v2"])
def test_an_encoder_reads_prompt_and_response_as_the_pair_that_its_tokenizer_makes(tmp_path, model_type, typed):
    classifier(tmp_path, model_type)
    tokenizer = tiny.make_encoder_tokenizer(typed=typed)
    tokenizer.save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    texts = ["two three", "four five six seven eight nine ten", "1"]
    scores = model.score("one two", texts)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    pairs = [tokenizer("one two", text, return_tensors="pt") for text in texts]
    assert all(("token_type_ids" in pair) == typed for pair in pairs)
    assert (model.network.separator is not None) == (typed and model_type == "bert")
    with torch.no_grad():
        expected = torch.cat([theirs(**pair).logits for pair in pairs])
    torch.testing.assert_close(scores.representations, expected, atol=1e-4, rtol=1e-4)


def test_a_pair_whose_types_do_not_change_at_its_separator_is_refused(tmp_path):
    classifier(tmp_path, "bert")
    tokenizer = tiny.make_encoder_tokenizer(typed=True)
    tokenizer.sep_token = "[UNK]"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="token types"):
        load_model(tmp_path, device="cpu")


def published_forward(folder, sequences, prompt_lengths) -> tuple[torch.Tensor, torch.Tensor]:
    """The published forward again, from its description: left padding, last column, L2, softmax gate.

    Returns vectors [n, 2k] and gate weights [n, k].
    """
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    language_model = AutoModelForCausalLM.from_pretrained(folder).eval()
    longest = max(map(len, sequences))
    ids = torch.tensor([[0] * (longest - len(one)) + list(one) for one in sequences])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in sequences])
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    with torch.no_grad():
        hidden = language_model.model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    vectors = hidden[:, -1] @ tensors["value_head.weight"].T
    vectors = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    if "prompt_head.weight" not in tensors:
        return vectors, torch.ones(len(sequences), vectors.shape[-1] // 2)
    places = [longest - (len(one) - prompt) - 1 for one, prompt in zip(sequences, prompt_lengths, strict=True)]
    prompts = hidden[torch.arange(len(sequences)), torch.tensor(places)]
    return vectors, torch.softmax(prompts @ tensors["prompt_head.weight"].T, dim=-1)


def published_scores(vectors: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """v_i R^T v_j of every pair, R block-diagonal with the gate weights of i's prompt. [n, n]"""
    count, size = vectors.shape
    table = torch.zeros(count, count)
    for i in range(count):
        blocks = [torch.tensor([[0.0, -1.0], [1.0, 0.0]]) * weight for weight in gate[i]]
        table[i] = vectors[i] @ torch.block_diag(*blocks).T @ vectors.T
    assert size == 2 * gate.shape[-1]
    return table


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["5GB", "60KB"])
def test_a_published_general_preference_model_scores_as_published(tmp_path, gate, tied, shard):
    folder = tiny.save_published(tmp_path, gate=gate, tied=tied, shard=shard)
    assert (folder / "model.safetensors.index.json").is_file() == (shard == "60KB")
    prompt, responses = [5, 6, 7, 8], tiny.sequences(5)
    sequences = [prompt + response for response in responses]
    model = load_model(folder, device="cpu")
    assert (model.kind, model.spec.dimension, model.spec.temperature) == ("general-preference", 6, 0.1)
    assert model.spec.gate == ("softmax" if gate else "none")
    assert model.spec.normalise
    assert model.spec.final_eos
    assert model.reader is None
    ours = model.embed(sequences, [4] * 5)
    vectors, weights = published_forward(folder, sequences, [4] * 5)
    table = published_scores(vectors, weights) / 0.1
    expanded = (ours[:, None].expand(5, 5, 6), ours[None].expand(5, 5, 6))
    torch.testing.assert_close(model.logit(*expanded), table, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        torch.from_numpy(model.comparator.matrix(ours.numpy())).float(), torch.sigmoid(table), atol=1e-3, rtol=1e-3
    )


def test_a_published_model_reads_text_with_one_begin_token_and_its_end_token_last(published_folder):
    model = load_model(published_folder, device="cpu")
    scores = model.score("Why?", ["Because.", "<|im_end|> no"])
    assert scores.probabilities.shape == (2, 2)
    readings = model.reader.read([conversation("Why?", "Because.")])
    begin, end = (tiny.MARKS.index(mark) for mark in ("<|begin|>", "<|im_end|>"))
    assert readings[0].token_ids.count(begin) == 1
    assert readings[0].token_ids[-1] == end
    twice = load_model(published_folder, device="cpu", bos="as-published").reader.read(
        [conversation("Why?", "Because.")]
    )
    assert twice[0].token_ids == [begin, *readings[0].token_ids]
    assert twice[0].prompt_length == readings[0].prompt_length + 1


@pytest.mark.parametrize("gate", [True, False])
def test_a_value_head_of_one_row_is_a_bradley_terry_reward(tmp_path, gate):
    folder = tiny.save_published(tmp_path, rows=1, gate=False)
    if gate:
        tensors = load_file(folder / "model.safetensors")
        extra = {"prompt_head.weight": torch.ones(1, tiny.HIDDEN)}
        save_file({**tensors, **extra}, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(folder, device="cpu")
    assert (model.kind, model.spec.temperature, model.spec.normalise) == ("bradley-terry", 1.0, False)
    tensors = load_file(folder / "model.safetensors")
    hidden = model.network.last_hidden(torch.tensor([[5, 6, 7]]))[0, -1]
    torch.testing.assert_close(model.embed([[5, 6, 7]], [1])[0], tensors["value_head.weight"] @ hidden)


def test_a_published_model_is_not_taken_for_another_kind(published_folder):
    with pytest.raises(ModelLoadError, match="6 rows, which is general-preference, not bradley-terry"):
        load_model(published_folder, device="cpu", kind="bradley-terry")


@pytest.mark.parametrize(("rows", "reason"), [(5, "does not fit kind general-preference"), (8, "head's tensors")])
def test_a_published_head_of_impossible_shape_is_refused(tmp_path, rows, reason):
    folder = tiny.save_published(tmp_path, rows=6)
    tensors = load_file(folder / "model.safetensors")
    tensors["value_head.weight"] = torch.zeros(rows, tiny.HIDDEN)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=reason):
        load_model(folder, device="cpu")


def test_a_shard_that_is_missing_is_refused(tmp_path):
    folder = tiny.save_published(tmp_path, shard="60KB")
    first = sorted(folder.glob("model-*.safetensors"))[0]
    first.unlink()
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_reward_in_row_zero_of_the_output_embedding_equals_transformers_logit_of_token_zero(tmp_path, model_type):
    theirs = tiny.save_output_row(tmp_path, model_type)
    sequences = tiny.sequences(5)
    ours = load_model(tmp_path, device="cpu", head="lm-head-row-0")
    assert (ours.kind, ours.spec.dimension, ours.spec.temperature) == ("bradley-terry", 1, 1.0)
    assert (ours.spec.final_eos, ours.spec.bos, ours.spec.max_length) == (False, "once", tiny.POSITIONS)
    with torch.no_grad():
        logits = [theirs(input_ids=torch.tensor([one])).logits[0, -1, :1] for one in sequences]
    torch.testing.assert_close(ours.embed(sequences, [2] * 5), torch.stack(logits), atol=1e-4, rtol=1e-4)


def test_no_other_row_of_the_output_embedding_is_read(tmp_path):
    tiny.save_output_row(tmp_path)
    path = tmp_path / "model.safetensors"
    before = load_model(tmp_path, device="cpu", head="lm-head-row-0").embed([[5, 6, 7]], [1])
    tensors = load_file(path)
    tensors["lm_head.weight"][1:] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    spoilt = load_model(tmp_path, device="cpu", head="lm-head-row-0")
    assert torch.equal(spoilt.embed([[5, 6, 7]], [1]), before)
    tensors["lm_head.weight"][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"NaN or infinity in head\.value_head\.weight"):
        load_model(tmp_path, device="cpu", head="lm-head-row-0")


def test_a_reward_in_the_output_embedding_reads_text_and_is_saved_as_a_folder_of_our_own(tmp_path):
    tiny.save_output_row(tmp_path / "theirs", text=True)
    model = load_model(tmp_path / "theirs", device="cpu", head="lm-head-row-0")
    scores = model.score("What is 1+1?", ["2", "3 <|im_end|>"])
    reading = model.reader.read([conversation("What is 1+1?", "2")])[0]
    assert reading.token_ids.count(tiny.MARKS.index("<|begin|>")) == 1
    assert reading.token_ids[-1] == tiny.MARKS.index("<|im_end|>")
    folder = save_model(tmp_path / "ours", model.network, model.spec, model.reader.tokenizer)
    again = load_model(folder, device="cpu")
    torch.testing.assert_close(again.score("What is 1+1?", ["2", "3 <|im_end|>"]).rewards, scores.rewards)


def test_a_reward_in_the_output_embedding_has_to_be_named(tmp_path, gated_folder, published_folder):
    tiny.save_output_row(tmp_path / "llm")
    for kind in ("auto", "bradley-terry"):
        with pytest.raises(ModelLoadError, match=r"without a value head.*load it with head='lm-head-row-0'"):
            load_model(tmp_path / "llm", device="cpu", kind=kind)
    with pytest.raises(ModelLoadError, match="one reward, which is bradley-terry, not regression"):
        load_model(tmp_path / "llm", device="cpu", kind="regression", head="lm-head-row-0")
    with pytest.raises(ModelLoadError, match="head is 'row 1'; it must be one of auto, lm-head-row-0"):
        load_model(tmp_path / "llm", device="cpu", head="row 1")
    for folder in (gated_folder, published_folder):
        with pytest.raises(ModelLoadError, match="has a head of its own"):
            load_model(folder, device="cpu", head="lm-head-row-0")
    classifier(tmp_path / "classifier", "llama")
    with pytest.raises(ModelLoadError, match=r"holds LlamaForSequenceClassification \(llama\)"):
        load_model(tmp_path / "classifier", device="cpu", head="lm-head-row-0")
    tiny.save_output_row(tmp_path / "tied", tied=True)
    with pytest.raises(ModelLoadError, match="one matrix for input and output embedding"):
        load_model(tmp_path / "tied", device="cpu", head="lm-head-row-0")


def test_logits_that_are_capped_or_scaled_are_no_plain_row(tmp_path):
    tiny.save_output_row(tmp_path, "gemma2")
    with pytest.raises(ModelLoadError, match=r"holds Gemma2ForCausalLM \(gemma2\).*llama, mistral, qwen2, qwen3"):
        load_model(tmp_path, device="cpu", head="lm-head-row-0")


def test_an_output_embedding_that_is_missing_or_empty_is_refused(tmp_path):
    tiny.save_output_row(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    head = tensors.pop("lm_head.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"the weights lack lm_head\.weight"):
        load_model(tmp_path, device="cpu", head="lm-head-row-0")
    save_file({**tensors, "lm_head.weight": head[:0]}, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight is of shape \[0, 32\]: it has no row 0"):
        load_model(tmp_path, device="cpu", head="lm-head-row-0")
