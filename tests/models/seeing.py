"""A tiny random reward model in the layout of Qwen2.5-VL or Qwen2-VL, and images to send it."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.models import tiny

# As Qwen2.5-VL's own writes messages and images; without its system message and videos.
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] -%}
{% if content['type'] == 'image' or 'image' in content or 'image_url' in content -%}
<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor -%}
{% endif %}<|im_end|>
{% endfor %}"""
NEW_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
PATCH, MERGE, FRAMES = 4, 2, 2


def save_seeing(
    folder: Path,
    head: str = "score.weight",
    *,
    rows: int = 1,
    gate: bool = False,
    model_type: str = "qwen2_5_vl",
) -> None:
    """Write a reward model of transformers' own classes with one linear head, and perhaps a gate."""
    tokenizer = tiny.make_tokenizer(TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(token) for token in NEW_TOKENS]})
    start, end, image, video = tokenizer.convert_tokens_to_ids(NEW_TOKENS)
    torch.manual_seed(7)
    older = model_type == "qwen2_vl"
    config = AutoConfig.for_model(
        model_type,
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": tiny.HIDDEN,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": tiny.POSITIONS,
            "initializer_range": 0.3,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
            "initializer_range": 0.3,
            **(
                {"embed_dim": 32, "hidden_size": tiny.HIDDEN, "mlp_ratio": 2}
                if older
                else {
                    "hidden_size": 32,
                    "out_hidden_size": tiny.HIDDEN,
                    "intermediate_size": 64,
                    "window_size": 16,
                    "fullatt_block_indexes": [1],
                }
            ),
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    file = folder / "model.safetensors"
    heads = {head: torch.randn(rows, tiny.HIDDEN)}
    if gate:
        heads["prompt_head.weight"] = torch.randn(rows // 2, tiny.HIDDEN)
    save_file({**load_file(file), **heads}, file, metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    sizes = {"shortest_edge": 64, "longest_edge": 4096}
    Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=MERGE, temporal_patch_size=FRAMES, size=sizes
    ).save_pretrained(folder)


def picture(width: int = 37, height: int = 50, *, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Return an image of random blocks."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (5, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BILINEAR).convert(mode)


def data_url(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """Return an image as a chat client sends it."""
    written = io.BytesIO()
    image.save(written, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(written.getvalue()).decode()}"


def part(url: str, **fields: Any) -> dict[str, Any]:
    """Return the content part of an image."""
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def text(words: str) -> dict[str, Any]:
    """Return the content part of a text."""
    return {"type": "text", "text": words}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    """Return a message of a user."""
    return {"role": "user", "content": list(parts)}
