"""A scalar or rating model as a folder of transformers' ``AutoModelForSequenceClassification``, for other servers.

Such a folder is the backbone, one linear layer without bias named ``score``, and the tokenizer with its chat template;
it is read at the last token that is not the padding token. What is written is loaded again by plain transformers and
compared, so that no folder gives other numbers than the model it came from.
"""

import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from paragone_models.errors import ModelLoadError, reason_of
from paragone_models.model import PreferenceModel
from paragone_models.text.reader import Reading, conversation

__all__ = ["classifier_refusal", "export_classifier"]

_PROMPT = "Is it raining?"
_RESPONSES = ("Yes, so take an umbrella with you.", "no")
# Of a reward, float32 against float32, and of the two types whose head is rounded too.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def classifier_refusal(model: PreferenceModel) -> str | None:
    """Return why a model cannot be a sequence classifier of transformers, or None if it can."""
    spec, network = model.spec, model.network
    head, config = network.head.value_head, network.config
    if spec.rules.has_vector:
        return f"a {spec.kind} model compares vectors, and a classifier gives each text numbers of its own"
    if spec.pooling != "last":
        # Poolings that others call mean (vLLM's, sentence-transformers') average the prompt's tokens in, and no setting
        # of theirs says where in each text its response begins.
        return (
            f"its pooling is {spec.pooling}, over the tokens of the response alone: a classifier reads the last token, "
            "and where other servers average, they average the prompt too"
        )
    if spec.final_eos:
        return "it overwrites the last token of a text by the end-of-sequence token, and no tokenizer does"
    if model.first_token or not network.causal:
        return f"a {config.model_type} backbone looks ahead, and transformers' class of it has another head"
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return f"its head is {head}, and a classifier's is one linear layer without bias"
    if hasattr(config, "auto_map"):
        return "it brings Python code of its own, which other servers would not run"
    if model.reader is None or not getattr(model.reader.tokenizer, "chat_template", None):
        return "its tokenizer has no chat template, so nothing would tell others how a conversation is written"
    return None


def export_classifier(model: PreferenceModel, folder: str | Path) -> Path:
    """Write a model as a sequence classifier, in the type of its weights, and return the folder.

    Args:
        folder: created where needed; it must be empty.

    Raises:
        ModelLoadError: if the model cannot be one, the folder is not empty, or plain transformers computes other
            numbers from what was written; nothing is left behind then.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelLoadError(f"{target} is there and not an empty folder: give another one")
    if reason := classifier_refusal(model):
        raise ModelLoadError(f"{model.name} cannot be a classifier of transformers: {reason}")
    assert model.reader is not None  # no template else
    readings = [one for one in model.reader.read(_conversations()) if isinstance(one, Reading)]
    classifier, tokenizer = _classifier(model), _padded(model, readings)
    classifier.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as fresh:
        classifier.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        _compare(Path(fresh), model, readings)
        for path in Path(fresh).glob("*.safetensors"):
            path.chmod(0o644)  # safetensors writes files that nobody but their owner can read
        target.mkdir(exist_ok=True)
        for path in Path(fresh).iterdir():
            shutil.move(path, target / path.name)
    return target


def _conversations() -> list[Any]:
    return [conversation(({"role": "user", "content": _PROMPT},), response) for response in _RESPONSES]


def _classifier(model: PreferenceModel) -> Any:
    """Return transformers' class with the model's tensors."""
    network, spec = model.network, model.spec
    backbone: Any = network.backbone
    config = copy.deepcopy(network.config)
    names = (*(["reward"] if spec.rules.has_reward else []), *spec.attributes)
    config.id2label, config.label2id = dict(enumerate(names)), {name: row for row, name in enumerate(names)}
    # Servers pass these numbers on as they are; of another problem they would make shares.
    config.problem_type = "regression"
    try:
        with torch.device("meta"):
            classifier: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ModelLoadError(f"{model.name} cannot be a classifier of transformers: {reason_of(error)}") from error
    tensors = {f"{classifier.base_model_prefix}.{name}": tensor for name, tensor in backbone.state_dict().items()}
    dtype = next(iter(tensors.values())).dtype
    head: Any = network.head.value_head
    tensors["score.weight"] = head.weight.detach().to(dtype)
    if missing := sorted(set(classifier.state_dict()) ^ set(tensors)):
        raise ModelLoadError(
            f"{model.name} cannot be a classifier of transformers: {type(classifier).__name__} has other tensors "
            f"({', '.join(missing[:3])})"
        )
    classifier.load_state_dict(tensors, assign=True)
    classifier.config.dtype = dtype
    return classifier


def _padded(model: PreferenceModel, readings: list[Reading]) -> Any:
    """Return the tokenizer with a padding token that no text ends with: a classifier reads the token before them."""
    assert model.reader is not None
    tokenizer = copy.deepcopy(model.reader.tokenizer)
    tokenizer.model_max_length = model.spec.max_length
    last = {reading.token_ids[-1] for reading in readings}
    candidates = [tokenizer.pad_token, tokenizer.unk_token, *tokenizer.all_special_tokens]
    for token in candidates:
        if token is not None and tokenizer.convert_tokens_to_ids(token) not in last:
            tokenizer.pad_token = token
            return tokenizer
    raise ModelLoadError(
        f"{model.name} cannot be a classifier of transformers: texts end with its only special token "
        f"({tokenizer.pad_token}), and a classifier would read the token before it"
    )


@torch.inference_mode()
def _compare(folder: Path, model: PreferenceModel, readings: list[Reading]) -> None:
    """Refuse a folder from which plain transformers computes other numbers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for response, reading in zip(_RESPONSES, readings, strict=True):
        messages = [{"role": "user", "content": _PROMPT}, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        if list(ids) != list(reading.token_ids):
            raise ModelLoadError(
                f"{model.name} reads a conversation as other tokens than its tokenizer's chat template gives alone: "
                "others would compute other numbers"
            )
        device = next(model.network.parameters()).device
        reads = torch.tensor([[[len(ids) - 1, len(ids)]]], device=device)
        expected = model.network(torch.tensor([ids], device=device), reads)[0].cpu()
        found = plain(input_ids=torch.tensor([ids])).logits[0].float()
        most = _TOLERANCES[plain.dtype] * max(1.0, float(expected.abs().max()))
        if not torch.allclose(found, expected, rtol=0.0, atol=most):
            raise ModelLoadError(
                f"{model.name} as a classifier gives {found.tolist()} and not {expected.tolist()}: it is not written"
            )
