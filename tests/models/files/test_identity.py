"""Identity: what changes a representation changes it, and nothing else does."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from paragone_models import load_model
from paragone_models.errors import ModelLoadError
from paragone_models.files.hashes import hash_files
from paragone_models.spec import ModelSpec
from paragone_models.text.template import tokenizer_hash
from tests.models import tiny

SPEC = ModelSpec(kind="general-preference", dimension=4, gate="softmax")
RATINGS = ModelSpec(kind="regression", dimension=2, attributes=("one", "two"))


def test_an_identity_has_64_hexadecimal_digits_and_a_fingerprint_32():
    identity = SPEC.identity("weights", "tokenizer")
    assert len(identity) == 64
    int(identity, 16)
    assert len(SPEC.fingerprint(identity, {})) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"dimension": 6},
        {"pooling": "mean"},
        {"gate": "none"},
        {"normalise": True},
        {"max_length": 100},
        {"special_tokens": "parse"},
        {"bos": "as-published"},
        {"reasoning": "strip"},
        {"final_eos": True},
    ],
)
def test_what_changes_a_representation_changes_the_identity(change):
    assert replace(SPEC, **change).identity("w", "t") != SPEC.identity("w", "t")


def test_weights_and_tokenizer_change_the_identity():
    assert len({SPEC.identity("w", "t"), SPEC.identity("v", "t"), SPEC.identity("w", None)}) == 3


@pytest.mark.parametrize(
    "change", [{"temperature": 0.2}, {"calibrated": True}, {"domain": "all"}, {"demonstration": True}]
)
def test_what_only_changes_answers_does_not_change_the_identity(change):
    assert replace(SPEC, **change).identity("w", "t") == SPEC.identity("w", "t")


def test_attribute_weights_do_not_change_the_identity():
    assert replace(RATINGS, weights=(1.0, 2.0)).identity("w", "t") == RATINGS.identity("w", "t")


def test_temperature_weights_calibration_and_numerics_change_the_fingerprint():
    variants = [
        ({}, RATINGS),
        ({"dtype": "float32"}, RATINGS),
        ({}, replace(RATINGS, temperature=2.0)),
        ({}, replace(RATINGS, weights=(1.0, 2.0))),
        ({}, replace(RATINGS, calibrated=True)),
    ]
    assert len({spec.fingerprint("identity", numerics) for numerics, spec in variants}) == len(variants)


def test_files_are_hashed_by_content_in_the_order_of_their_names(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    before = hash_files([one, two])
    assert before == hash_files([two, one])
    two.write_bytes(b"3")
    assert hash_files([one, two]) != before


def test_template_vocabulary_and_named_tokens_change_the_hash_of_a_tokenizer():
    tokenizer = tiny.make_tokenizer()
    before = tokenizer_hash(tokenizer, "template")
    assert before == tokenizer_hash(tiny.make_tokenizer(), "template")
    assert tokenizer_hash(tokenizer, "another") != before
    assert tokenizer_hash(tiny.make_tokenizer(adds_bos=True), "template") != before
    tokenizer.eos_token = "<|endoftext|>"
    assert tokenizer_hash(tokenizer, "template") != before


CONFIGURATION = """
from transformers import PretrainedConfig

class JudgeConfig(PretrainedConfig):
    model_type = "tiny-judge"
    hidden_size, vocab_size, num_hidden_layers = 8, 50, 1
"""
MODELING = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from .configuration_judge import JudgeConfig
from .scale import SCALE

class JudgeModel(PreTrainedModel):
    config_class = JudgeConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **kwargs):
        return BaseModelOutput(last_hidden_state=SCALE * self.embed(input_ids))
"""


def save_judge(folder, scale):
    """Write a backbone whose code comes with it, in files of which one imports the others, and a head."""
    (folder / "configuration_judge.py").write_text(CONFIGURATION)
    (folder / "modeling_judge.py").write_text(MODELING)
    (folder / "scale.py").write_text(f"SCALE = {scale}\n")
    classes = {"AutoConfig": "configuration_judge.JudgeConfig", "AutoModel": "modeling_judge.JudgeModel"}
    config = {"model_type": "tiny-judge", "architectures": ["JudgeModel"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    tensors = {"embed.weight": torch.randn(50, 8), "v_head.weight": torch.randn(1, 8)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return (tensors["embed.weight"] @ tensors["v_head.weight"].T)[7]


@pytest.fixture(scope="module")
def _own_modules(tmp_path_factory):
    """Keep the copies that transformers makes of such code out of the user's folders."""
    modules = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
        patch.syspath_prepend(modules)
        yield


@pytest.mark.usefixtures("_own_modules")
@pytest.mark.parametrize("elsewhere", [False, True])
def test_code_that_comes_with_a_model_is_in_its_identity(tmp_path, elsewhere):
    identities = []
    for number, scale in enumerate((1, 1, 3)):
        folder = tmp_path / f"judge{number}"
        folder.mkdir()
        reward = save_judge(folder, scale)
        model = load_model(folder, device="cpu", trust_remote_code=True, elsewhere=elsewhere)
        identities.append(model.identity)
        if not elsewhere:
            torch.testing.assert_close(model.embed([[5, 7]], [1])[0], scale * reward)
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.usefixtures("_own_modules")
def test_code_that_comes_with_a_model_is_not_run_unless_it_is_trusted(tmp_path):
    save_judge(tmp_path, 1)
    for file in tmp_path.glob("*.py"):
        file.write_text("import pytest\npytest.fail('the code was run')\n")
    with pytest.raises(ModelLoadError, match=r"brings Python code of its own, .*trust_remote_code") as refusal:
        load_model(tmp_path, device="cpu")
    assert "\n" not in str(refusal.value)
