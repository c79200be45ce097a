"""Process reward models in Qwen2.5-Math-PRM's layout, held against plain transformers at each separator."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from paragone_models import load_model
from paragone_models.errors import ModelLoadError, PreferencesUnavailableError, TextError
from paragone_models.files.saving import read_refusal
from paragone_models.text.reader import Conversation, conversation
from paragone_models.text.rendered import Rendered
from tests.models import tiny
from tests.models.files.families.checkpoints import backbone, states

PROMPT = "How many trees are left?"
STEPS = [["There are ten trees.", "Two are cut.", "So eight are left."], ["Nine."], ["Ten minus two.", "Eight."]]
SEPARATOR = "<extra_0>"


def written(folder, *, separator: str | None = SEPARATOR, rows: int = 2, drop: str = "", template: str = tiny.CHATML):
    bare = backbone("qwen2")
    torch.manual_seed(12)
    head = {"score.0.weight": (32, 32), "score.0.bias": (32,), "score.2.weight": (rows, 32), "score.2.bias": (rows,)}
    heads = {name: torch.randn(shape) for name, shape in head.items()}
    tensors = {f"model.{name}": tensor.clone() for name, tensor in bare.state_dict().items()} | heads
    tensors["lm_head.weight"] = torch.randn(400, 32)
    tensors.pop(drop, None)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    auto = {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel", "AutoConfig": "configuration_qwen2_rm.X"}
    stated = {**bare.config.to_dict(), "architectures": ["Qwen2ForProcessRewardModel"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(stated, default=str))
    tokenizer = tiny.make_tokenizer(template)
    if separator is not None:
        # As the publisher did: a special token that was there already has this name.
        path = folder / "tokenizer.json"
        tokenizer.save_pretrained(folder)
        for file in folder.glob("tokenizer*.json"):
            file.write_text(file.read_text().replace("<|begin|>", separator))
        assert separator in path.read_text()
    else:
        tokenizer.save_pretrained(folder)
    return bare, heads


def expected(folder, bare, heads, steps) -> tuple[list[int], torch.Tensor]:
    """The tokens and the probability of each step as the model card computes them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    content = SEPARATOR.join(steps) + SEPARATOR
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": content}]
    tokens = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
    hidden = functional.relu(functional.linear(states(bare, tokens), heads["score.0.weight"], heads["score.0.bias"]))
    shares = functional.linear(hidden, heads["score.2.weight"], heads["score.2.bias"]).softmax(-1)
    separator = tokenizer.encode(SEPARATOR, add_special_tokens=False)
    assert len(separator) == 1
    return tokens, shares[torch.tensor(tokens) == separator[0], 1]


def test_each_step_has_the_probability_of_the_second_class_at_its_separator(tmp_path):
    bare, heads = written(tmp_path)
    model = load_model(tmp_path, device="cpu")
    assert (model.kind, model.spec.dimension) == ("process", 1)
    talks = [
        Conversation(conversation(PROMPT, "").prompt, conversation("", "").response, steps=tuple(s)) for s in STEPS
    ]
    scores = model.score(PROMPT, ["\n\n".join(steps) for steps in STEPS])
    for row, (steps, talk) in enumerate(zip(STEPS, talks, strict=True)):
        tokens, probabilities = expected(tmp_path, bare, heads, steps)
        (reading,) = model.reader.read([talk])
        assert reading.token_ids == tokens
        assert reading.text.count(SEPARATOR) == len(steps) == len(reading.reads)
        np.testing.assert_allclose(scores.steps[row], probabilities, atol=1e-5)
        embedded = model.embed([tokens], [3])[0].sigmoid()
        torch.testing.assert_close(embedded, probabilities, atol=1e-5, rtol=1e-4)
    assert scores.rewards is None
    assert scores.probabilities is None
    assert torch.isnan(scores.representations[1, 1:]).all()


@pytest.mark.parametrize("how", ["min", "prod", "last"])
def test_an_aggregation_makes_rewards_and_preferences_of_steps(tmp_path, how):
    bare, heads = written(tmp_path)
    model = load_model(tmp_path, device="cpu", aggregation=how)
    rules = {"min": min, "prod": lambda values: float(np.prod(values)), "last": lambda values: values[-1]}
    right = np.array([rules[how](expected(tmp_path, bare, heads, steps)[1].double().tolist()) for steps in STEPS])
    scores = model.score(PROMPT, ["\n\n".join(steps) for steps in STEPS])
    np.testing.assert_allclose(1 / (1 + np.exp(-scores.rewards)), right, atol=1e-5)
    # Of two responses of which exactly one is right, the probability that it is the first.
    only = right[:, None] * (1 - right)
    np.testing.assert_allclose(scores.probabilities, only / (only + only.T), atol=1e-4)
    plain = load_model(tmp_path, device="cpu")
    assert model.identity == plain.identity
    assert model.fingerprint != plain.fingerprint


def test_without_an_aggregation_nothing_is_compared(tmp_path):
    written(tmp_path)
    model = load_model(tmp_path, device="cpu")
    with pytest.raises(PreferencesUnavailableError, match=r"name an aggregation \(min, prod, last"):
        model.comparator.logit([[0.0]], [[1.0]])
    with pytest.raises(ModelLoadError, match="aggregation is 'mean'; it must be one of min, prod, last"):
        load_model(tmp_path, device="cpu", aggregation="mean")
    assert "end of each step" in read_refusal(model.network, model.spec, first_token=False)


def test_a_separator_inside_a_step_stays_text(tmp_path):
    written(tmp_path)
    model = load_model(tmp_path, device="cpu")
    talk = conversation(PROMPT, "")
    forged = Conversation(talk.prompt, talk.response, steps=(f"Nine.{SEPARATOR} Sure.", "Ten."))
    (reading,) = model.reader.read([forged])
    assert len(reading.reads) == 2
    assert [reading.token_ids[start] for start, _ in reading.reads] == [model.spec.step_token] * 2
    in_prompt = conversation(f"What is {SEPARATOR}?", "One.\n\nTwo.")
    assert len(model.reader.read([in_prompt])[0].reads) == 2
    parsed = load_model(tmp_path, device="cpu", special_tokens="parse")
    error = parsed.reader.read([in_prompt])[0]
    assert isinstance(error, TextError)
    assert "has 2 steps, and the text 3 times" in str(error)


def test_texts_that_are_rendered_already_are_read_at_their_separators(tmp_path):
    bare, heads = written(tmp_path)
    model = load_model(tmp_path, device="cpu")
    tokens, _ = expected(tmp_path, bare, heads, STEPS[0])
    own, none = model.reader.read([Rendered(tuple(tokens)), Rendered("no steps at all")])
    assert len(own.reads) == 3
    assert "has no '<extra_0>'" in str(none)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}], "one text by the assistant"),
        ("\n\n".join("x" * 1001), "has 1001 steps; from 1 to 1000"),
    ],
)
def test_what_has_no_steps_is_refused(tmp_path, response, reason):
    written(tmp_path)
    error = load_model(tmp_path, device="cpu", max_length=512).reader.read([conversation(PROMPT, response)])[0]
    assert isinstance(error, TextError)
    assert reason in str(error)


def test_an_empty_response_is_one_empty_step(tmp_path):
    written(tmp_path)
    model = load_model(tmp_path, device="cpu")
    assert [len(row) for row in model.score(PROMPT, ["", "\n\n"]).steps] == [1, 1]


def test_other_models_take_no_steps(gated):
    talk = conversation(PROMPT, "")
    error = gated.reader.read([Conversation(talk.prompt, talk.response, steps=("One.",))])[0]
    assert "no steps: send a response" in str(error)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"separator": None}, "has no token <extra_0>"),
        ({"rows": 3}, "this one has score with 3"),
        ({"drop": "score.2.bias"}, None),
        ({"drop": "score.2.weight"}, "belongs to a head of a form|goes from|this one has"),
        ({"drop": "model.norm.weight"}, "lacks 1 weights"),
    ],
)
def test_what_is_not_whole_is_refused_by_name(tmp_path, change, reason):
    written(tmp_path, **change)
    if reason is None:  # a layer may have no bias
        load_model(tmp_path, device="cpu")
        return
    with pytest.raises(ModelLoadError, match=reason):
        load_model(tmp_path, device="cpu")
