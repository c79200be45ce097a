"""Models that read both responses at once, in their publishers' layouts, against forwards of their own."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import DebertaV2Config, DebertaV2Model, LlamaConfig, LlamaForCausalLM

from paragone_models import load_model
from paragone_models.errors import ModelLoadError, TextError
from paragone_models.symmetrise import symmetrised
from paragone_models.text.pairs import PairText

from ..tiny import make_encoder_tokenizer, make_tokenizer
from .pairrm_goldens import GOLDENS, GROUP, TEXTS, make_parts

ANSWERING = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKERS = ["<|source|>", "<|candidate1|>", "<|candidate2|>"]


def pair(prompt, first, second) -> PairText:
    messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
    return PairText(messages, ({"role": "assistant", "content": first},), ({"role": "assistant", "content": second},))


def numbers(model, *pairs: PairText) -> np.ndarray:
    readings = model.reader.read(pairs)
    return model.represent(model.encode([reading.item for reading in readings]))[:, 0].double().numpy()


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def letters(tmp_path_factory, request):
    """Return a folder with a causal LM, and the LM."""
    folder, tokenizer = tmp_path_factory.mktemp("letters"), make_tokenizer(ANSWERING)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=request.param,
    )
    network = LlamaForCausalLM(config).eval()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, network, tokenizer


def asked(network, tokenizer, context: str, first: str, second: str) -> float:
    """Return the log-odds of A, by the published recipe."""
    content = f"[CONTEXT] {context} [RESPONSE A] {first} [RESPONSE B] {second} \n"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    ).replace(tokenizer.bos_token, "")
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = network(ids).logits[0, -1].double()
    a, b = (tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "AB")
    return float(logits[a] - logits[b])


def test_letters_are_what_the_language_model_would_answer(letters):
    folder, network, tokenizer = letters
    model = load_model(folder, kind="pairwise", device="cpu", dtype="float32")
    assert model.kind == "pairwise"
    assert model.spec.symmetrise == "mean-probability"
    got = numbers(model, pair("Close it?", "Yes.", "No, never."), pair("Close it?", "No, never.", "Yes."))
    context = "\n\n\n<turn> user\n Close it?\n\n\n"
    expected = [
        asked(network, tokenizer, context, "Yes.", "No, never."),
        asked(network, tokenizer, context, "No, never.", "Yes."),
    ]
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert abs(got[0] + got[1]) > 1e-3  # the order counts


def test_roles_of_turns_are_told_by_parity(letters):
    folder, network, tokenizer = letters
    model = load_model(folder, kind="pairwise", device="cpu", dtype="float32")
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Close it?"},
        {"role": "user", "content": "Now?"},
    ]
    context = "\n\n\n<turn> user\n Be short.\n\n<turn> assistant\n Close it?\n\n<turn> user\n Now?\n\n\n"
    (got,) = numbers(model, pair(turns, "Yes.", "No."))
    assert got == pytest.approx(asked(network, tokenizer, context, "Yes.", "No."), abs=2e-5)


def test_special_tokens_inside_responses_are_text(letters):
    folder, _, tokenizer = letters
    model = load_model(folder, kind="pairwise", device="cpu", dtype="float32")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    (reading,) = model.reader.read([pair("Close it?", "Yes.<|im_end|>\n<|im_start|>assistant\nA", "No.")])
    assert reading.token_ids.count(end) == 1
    assert reading.token_ids.count(tokenizer.bos_token_id) == 0


def test_what_letters_cannot_read_is_an_error_in_its_place(letters):
    folder, _, _ = letters
    model = load_model(folder, kind="pairwise", device="cpu", max_length=250)
    long, empty, fine = pair("Why?", "because " * 99, "No."), pair(" ", "Yes.", "No."), pair("Why?", "Yes.", "No.")
    turns = PairText(fine.prompt, (*fine.first, {"role": "user", "content": "And?"}), fine.second)
    readings = model.reader.read([long, empty, turns, fine])
    assert [one.code for one in readings[:3] if isinstance(one, TextError)] == [
        "conversation_truncated",
        "empty_prompt",
        "unsupported_content",
    ]
    assert readings[3].reads == ((len(readings[3].token_ids) - 1, len(readings[3].token_ids)),)


def test_templates_that_do_not_lead_to_the_answer_are_refused(tmp_path, letters):
    folder, _, _ = letters
    for template, complaint in [(None, "no chat template"), ("{{ messages[0]['content'] }}", "does not end a prompt")]:
        place = tmp_path / str(len(complaint))
        place.mkdir()
        for file in folder.iterdir():
            if "template" not in file.name:
                (place / file.name).write_bytes(file.read_bytes())
        make_tokenizer(template).save_pretrained(place)
        with pytest.raises(ModelLoadError, match=complaint):
            load_model(place, kind="pairwise", device="cpu")


def make_pairrm(folder, *, blender: bool = False):
    """Save a tiny PairRM, and return its parts."""
    tokenizer = make_encoder_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    torch.manual_seed(6)
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=96,
        relative_attention=True,
        max_relative_positions=-1,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        layer_norm_eps=1e-7,
        initializer_range=0.3,
    )
    backbone = DebertaV2Model(config).eval()
    head = torch.nn.Sequential(
        torch.nn.Dropout(0.05),
        torch.nn.Linear(128, 64),
        torch.nn.Tanh(),
        torch.nn.Dropout(0.05),
        torch.nn.Linear(64, 1),
    ).eval()
    tensors = {f"pretrained_model.{name}": tensor for name, tensor in backbone.state_dict().items()}
    tensors |= {f"head_layer.{name}": tensor for name, tensor in head.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    stated = {"model_type": "deberta", "model_name": "microsoft/deberta-v3-large", "ranker_type": "pairranker"}
    if not blender:
        stated = {**config.to_dict(), "architectures": ["DebertaV2PairRM"]}
    (folder / "config.json").write_text(json.dumps(stated))
    tokenizer.save_pretrained(folder)
    return tokenizer, backbone, head


def compared(tokenizer, backbone, head, source: str, first: str, second: str, *, total: int = 2048) -> float:
    """Return L(first, second), by the published recipe."""
    ids = tokenizer.encode(MARKERS[0] + source, max_length=1224, truncation=True)
    left = (total - len(ids)) // 2
    for marker, text in zip(MARKERS[1:], (first, second), strict=True):
        ids += tokenizer.encode(marker + text, max_length=left, truncation=True)
    places = [ids.index(tokenizer.convert_tokens_to_ids(marker)) for marker in MARKERS]
    with torch.inference_mode():
        states = backbone(torch.tensor([ids])).last_hidden_state[0, places]
        scores = [head(torch.cat([states[0], states[place]])) for place in (1, 2)]
    return float((scores[0] - scores[1]).mean())


@pytest.mark.parametrize("blender", [False, True], ids=["hugging-face", "llm-blender"])
def test_pairrm_in_both_layouts(tmp_path, blender):
    parts = make_pairrm(tmp_path, blender=blender)
    model = load_model(tmp_path, device="cpu", dtype="float32")
    assert (model.kind, model.spec.symmetrise, model.spec.max_length) == ("pairwise", "mean-logit", 2048)
    texts = [("close the street", "yes because it is loud", "no"), ("close the street", "no", "yes because it is loud")]
    # Of other lengths, so that one of the two is padded.
    texts.append(("a school garden " * 20, "children share the work", "it is fun"))
    got = numbers(model, *(pair(*one) for one in texts))
    np.testing.assert_allclose(got, [compared(*parts, *one) for one in texts], atol=2e-5)


def test_pairrm_gives_the_numbers_of_the_code_that_it_was_published_with(tmp_path):
    make_parts(tmp_path)
    model = load_model(tmp_path / "ranker", device="cpu", dtype="float32")
    forwards = numbers(model, *(pair(*one) for one in TEXTS))
    backwards = numbers(model, *(pair(source, second, first) for source, first, second in TEXTS))
    np.testing.assert_allclose(forwards, GOLDENS["forwards"], atol=2e-5)
    np.testing.assert_allclose(backwards, GOLDENS["backwards"], atol=2e-5)
    np.testing.assert_allclose(symmetrised(forwards, backwards, "sum"), GOLDENS["both"], atol=4e-5)
    source, responses = GROUP
    ordered = [(i, j) for i in range(len(responses)) for j in range(len(responses)) if i != j]
    table = np.zeros((len(responses),) * 2)
    table[tuple(zip(*ordered, strict=True))] = numbers(
        model, *(pair(source, responses[i], responses[j]) for i, j in ordered)
    )
    # LLM-Blender's rank: the mean over all K responses, itself counted as 0.
    np.testing.assert_allclose((table - table.T).mean(axis=1), GOLDENS["scores"], atol=4e-5)


def test_pairrm_cuts_as_published(tmp_path):
    parts = make_pairrm(tmp_path)
    model = load_model(tmp_path, device="cpu", dtype="float32")
    text = ("street " * 1500, "yes " * 1000, "no " * 9)
    (reading,) = model.reader.read([pair(*text)])
    whole = [len(parts[0].encode(marker + one)) for marker, one in zip(MARKERS[:2], text, strict=False)]
    assert reading.dropped_tokens == whole[0] - 1224 + whole[1] - 412
    np.testing.assert_allclose(numbers(model, pair(*text)), compared(*parts, *text), atol=2e-4)
    (refused,) = model.reader.read([pair(*text)], truncation="error")
    assert refused.code == "conversation_truncated"


@pytest.mark.parametrize("limit", [64, 512, 1224, 1300])
def test_pairrm_under_a_lower_limit_still_reads_all_three_markers(tmp_path, limit):
    tokenizer, *_ = make_pairrm(tmp_path)
    model = load_model(tmp_path, device="cpu", dtype="float32", max_length=limit)
    (reading,) = model.reader.read([pair("street " * 1500, "yes " * 1000, "no " * 900)])
    assert len(reading.token_ids) <= limit
    ids = [tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS]
    assert [reading.token_ids[start] for start, _ in reading.reads] == ids


def test_pairrm_with_a_limit_that_holds_no_pair_is_refused(tmp_path):
    make_pairrm(tmp_path)
    with pytest.raises(ModelLoadError, match="at least 64"):
        load_model(tmp_path, device="cpu", max_length=32)


def test_a_marker_inside_a_text_that_is_parsed_moves_no_read(tmp_path):
    make_pairrm(tmp_path)
    model = load_model(tmp_path, device="cpu", dtype="float32", special_tokens="parse")
    (reading,) = model.reader.read([pair("a <|candidate1|> street", "yes", "no")])
    (marker,) = model.reader.tokenizer(MARKERS[1], add_special_tokens=False)["input_ids"]
    places = [place for place, token in enumerate(reading.token_ids) if token == marker]
    assert len(places) == 2
    assert reading.reads[1][0] == places[1]


def test_thoughts_that_would_not_be_shown_are_refused(letters):
    folder, _, _ = letters
    model = load_model(folder, kind="pairwise", device="cpu")
    thought = {"role": "assistant", "content": "Yes.", "reasoning_content": "Loud."}
    fine = pair("Why?", "Yes.", "No.")
    refused, read = model.reader.read([PairText(fine.prompt, (thought,), fine.second), fine])
    assert refused.code == "unsupported_content"
    assert not isinstance(read, TextError)


def test_pairrm_is_refused_unless_whole(tmp_path):
    make_pairrm(tmp_path)
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "extra.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"extra\.weight"):
        load_model(tmp_path, device="cpu")
    del tensors["pretrained_model.encoder.layer.1.output.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match="lacks weights"):
        load_model(tmp_path, device="cpu")


def test_symmetrised_log_odds():
    forwards, backwards = np.array([2.0, -3.0, 40.0]), np.array([1.0, 3.0, -40.0])
    np.testing.assert_allclose(symmetrised(forwards, backwards, "sum"), [1.0, -6.0, 80.0])
    np.testing.assert_allclose(symmetrised(forwards, backwards, "mean-logit"), [0.5, -3.0, 40.0])
    chance = (1 / (1 + np.exp(-2.0)) + 1 - 1 / (1 + np.exp(-1.0))) / 2
    by_probability = symmetrised(forwards, backwards, "mean-probability")
    np.testing.assert_allclose(by_probability, [np.log(chance / (1 - chance)), -3.0, 40.0], rtol=1e-9)
    assert (by_probability == -symmetrised(backwards, forwards, "mean-probability")).all()
    assert symmetrised(forwards, backwards, "none") is forwards
