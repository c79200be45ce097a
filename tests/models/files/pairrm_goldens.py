"""A tiny PairRM in LLM-Blender's layout, and what LLM-Blender's own code says of it.

The numbers of ``GOLDENS`` come from this file, run in an environment of its own (llm-blender does not import under the
transformers of this project):

    python -m venv blender && blender/bin/pip install llm-blender==0.0.2 transformers==4.44.2 'numpy<2' torch
    blender/bin/python tests/models/files/pairrm_goldens.py

They were made with torch 2.13.0 on a CPU, in float32. Weights are drawn by numpy from each tensor's name, so that every
version of transformers makes the same checkpoint.
"""

import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DebertaV2Config, DebertaV2Model, PreTrainedTokenizerFast

MARKERS = ["<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"]
_HIDDEN = 128
_WORDS = "a and because children close fun garden in is it loud lights no not of only quiet road school street the yes"

TEXTS = [
    ("close the street", "yes because it is loud", "no"),
    ("a school garden", "no", "yes and it is fun"),
    ("is the road quiet", "it is not quiet, it is loud", "it is not quiet, it is loud"),
    # Longer than a budget: 1,224 tokens of the source, 412 of a candidate and half of what the source leaves.
    ("street " * 1500, "yes " * 700, "no and " * 9),
    ("the lights", "yes only in the school " * 300, "no because children " * 400),
]
GROUP = ("close the street", ["yes because it is loud", "no", "the garden is fun", "not the school road"])

GOLDENS: dict[str, Any] = {
    "forwards": [-0.6536486148834229, -1.1625919342041016, 1.5735194683074951, 0.7028132677078247, -0.4818251132965088],
    "backwards": [-1.446751594543457, 0.06688809394836426, 1.5735194683074951, -1.1763771772384644, 0.6329445242881775],
    "both": [0.7931029796600342, -1.2294800281524658, 0.0, 1.879190444946289, -1.114769697189331],
    "scores": [-0.3630567193031311, -0.5441462397575378, 0.8505648374557495, 0.05663806200027466],
}
"""Of each of ``TEXTS``: log-odds of the first response, read first; of the second one, read first; and what ``compare``
makes of both by default. Then the scores that ``rank`` gives the responses of ``GROUP``."""


def make_parts(folder: Path) -> None:
    """Write ``base``, the backbone that LLM-Blender starts from, and ``ranker``, the checkpoint as it publishes one."""
    vocabulary = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *_WORDS.split(), ",", "."]
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names: Any = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    base, ranker = folder / "deberta-v3-tiny", folder / "ranker"
    for place in (base, ranker):
        place.mkdir(parents=True)
    fast.save_pretrained(base)
    config = DebertaV2Config(
        vocab_size=len(vocabulary), hidden_size=_HIDDEN, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=160, relative_attention=True, max_relative_positions=-1, position_buckets=16,
        norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
        type_vocab_size=0, layer_norm_eps=1e-7,
    )  # fmt: skip
    backbone = DebertaV2Model(config)
    backbone.save_pretrained(base)
    fast.add_tokens(MARKERS)
    fast.save_pretrained(ranker)
    shapes = {f"pretrained_model.{name}": tuple(one.shape) for name, one in backbone.state_dict().items()}
    shapes["pretrained_model.embeddings.word_embeddings.weight"] = (len(fast), _HIDDEN)
    shapes |= {"head_layer.1.weight": (_HIDDEN, 2 * _HIDDEN), "head_layer.1.bias": (_HIDDEN,)}
    shapes |= {"head_layer.4.weight": (1, _HIDDEN), "head_layer.4.bias": (1,)}
    save_file({name: _drawn(name, shape) for name, shape in shapes.items()}, ranker / "model.safetensors")
    stated = {
        "ranker_type": "pairranker", "model_type": "deberta", "model_name": str(base), "source_maxlength": 1224,
        "candidate_maxlength": 412, "n_tasks": 1, "device": "cpu", "fp16": False,
    }  # fmt: skip
    (ranker / "config.json").write_text(json.dumps(stated))


def _drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    # A layer norm that multiplies by nothing would silence its layer.
    centre, scale = (1.0, 0.2) if "LayerNorm.weight" in name else (0.0, 0.25)
    return torch.from_numpy((centre + scale * values).astype(np.float32))


def _measured(folder: Path) -> dict[str, Any]:
    """Return what LLM-Blender says; its package is imported here alone."""
    import llm_blender

    blender = llm_blender.Blender()
    blender.loadranker(str(folder / "ranker"), device="cpu")
    found: dict[str, Any] = {}
    for name, mode in (("forwards", "[A,B]"), ("backwards", "[B,A]"), ("both", "[A,B]+[B,A]")):
        found[name] = [
            float(blender.compare([source], [first], [second], return_logits=True, mode=mode, disable_tqdm=True)[0])
            for source, first, second in TEXTS
        ]
    source, candidates = GROUP
    found["scores"] = blender.rank([source], [candidates], return_scores=True, disable_tqdm=True)[0].tolist()
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        make_parts(Path(made))
        json.dump(_measured(Path(made)), sys.stdout, indent=1)
