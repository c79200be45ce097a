"""Images in messages: held against transformers' own processor and model, and against hostile bytes."""

import base64
import io
import json
import struct
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from paragone_models import load_model
from paragone_models.errors import TextError
from paragone_models.files.backbones import reference_to, save_head
from paragone_models.files.loading import load_head, reference_of
from paragone_models.forward import LocalForward
from paragone_models.images import MOST_IMAGES, MOST_WORK
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import conversation
from paragone_models.text.rendered import Rendered
from paragone_models.text.rendering import Turn
from tests.models import tiny
from tests.models.seeing import data_url, part, picture, save_seeing, text, user

FIRST, SECOND = picture(37, 50, seed=1), picture(64, 24, seed=2)
PROMPT = [
    user(text("Close the "), part(data_url(FIRST)), text("street to "), part(data_url(SECOND))),
    {"role": "assistant", "content": "Which?"},
    user(text("the market"), part(data_url(FIRST, "PNG", optimize=True))),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeing")
    save_seeing(folder)
    return folder


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    folder = tmp_path_factory.mktemp("older")
    save_seeing(folder, model_type="qwen2_vl")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, device="cpu")


def plainly(folder, messages, images):
    """Return transformers' tokens and last hidden state of a conversation, by its own processor and model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen = Qwen2VLImageProcessorPil.from_pretrained(folder)(images=images, return_tensors="pt") if images else {}
    written = tokenizer.apply_chat_template(messages, tokenize=False)
    for grid in seen.get("image_grid_thw", ()):
        written = written.replace("<|image_pad|>", "<|seen|>" * int(grid.prod() // 4), 1)
    ids = tokenizer(written.replace("<|seen|>", "<|image_pad|>"), return_tensors="pt")["input_ids"]
    kinds = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    with torch.no_grad():
        backbone = AutoModel.from_pretrained(folder).eval()
        hidden = backbone(input_ids=ids, **seen, **({"mm_token_type_ids": kinds} if images else {})).last_hidden_state
    return ids[0].tolist(), hidden[0, -1]


def score_weight(folder):
    return load_file(folder / "model.safetensors")["score.weight"]


@pytest.mark.parametrize("which", ["folder", "older"])
def test_rewards_are_those_of_transformers_own_processor_and_forward(which, request):
    folder = request.getfixturevalue(which)
    model = load_model(folder, device="cpu")
    responses = ["Families walk through it.", "no"]
    scores = model.score(PROMPT, responses)
    for row, response in enumerate(responses):
        messages = [*PROMPT, {"role": "assistant", "content": response}]
        ids, hidden = plainly(folder, messages, [FIRST, SECOND, FIRST])
        reading = model.reader.read([conversation(PROMPT, response)])[0]
        assert reading.token_ids == ids
        assert scores.rewards[row] == pytest.approx(float(score_weight(folder) @ hidden), abs=1e-4)
    assert [image.tokens for image in reading.images] == [30, 24, 30]
    prompt, _ = plainly(folder, PROMPT, [FIRST, SECOND, FIRST])
    assert reading.prompt_length == len(prompt)


def test_conversations_with_and_without_images_share_a_pass_and_change_nobody(folder, model):
    talks = [
        conversation(PROMPT, "no"),
        conversation("Close the main street?", "Families walk through it on every market day."),
        conversation([user(part(data_url(SECOND)))], "yes"),
    ]
    items = [reading.item for reading in model.reader.read(talks)]
    together = model.encode(items)
    assert model.local.batching.startswith("padded: qwen2_5_vl reads more than text")
    alone = torch.cat([model.encode([item]) for item in items])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    _, hidden = plainly(folder, [*talks[1].prompt, *talks[1].response], [])
    torch.testing.assert_close(together[1, 0], hidden, atol=1e-5, rtol=1e-5)
    # And bit for bit, where that was asked for.
    apart = LocalForward(model.network, max_batch_tokens=4096, deterministic=True)
    assert torch.equal(apart.encode(items)[::2], apart.encode(items[::2]))


@pytest.mark.parametrize("seed", range(3))
def test_the_pixels_are_what_the_images_own_processor_makes_of_them(folder, model, seed):
    draw = np.random.default_rng(seed)
    image = picture(*draw.integers(9, 150, 2).tolist(), seed=seed, mode=("RGB", "RGBA", "L")[seed])
    seen = model.reader.images.read(part(data_url(image)))
    patches, grids = model.reader.images.patches([seen])
    own = Qwen2VLImageProcessorPil.from_pretrained(folder)(images=[image], return_tensors="pt")
    assert torch.equal(patches, own["pixel_values"]), "not the same bits"
    assert torch.equal(grids, own["image_grid_thw"])
    assert seen.tokens == int(grids.prod()) // 4


def test_a_photograph_is_turned_as_its_camera_was_held(model):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    images = model.reader.images
    height, width, _ = images.pixels(images.read(part(data_url(picture(60, 20), "JPEG", exif=exif)))).shape
    assert height > width


def test_the_image_is_known_by_its_bytes_and_decoded_once(model):
    url = data_url(picture(seed=9))
    images = model.reader.images
    once = images.read(part(url))
    again = images.read(part(url.replace("image/png", "IMAGE/x-any"), detail="auto"))
    assert again.key == once.key
    assert images.pixels(again) is images.pixels(once)
    first, second, other = (
        model.reader.read([conversation([user(part(link))], response)])[0].item
        for link, response in ((url, "yes"), (url, "no"), (data_url(picture(seed=10)), "yes"))
    )
    assert first.content_key == second.content_key
    assert first.token_ids == other.token_ids, "the tokens do not tell of the image"
    assert first.content_key != other.content_key


def test_the_identity_tells_what_is_seen_of_an_image(model, tmp_path):
    save_seeing(tmp_path)
    settings = tmp_path / "preprocessor_config.json"
    assert load_model(tmp_path, device="cpu").identity == model.identity
    assert model.provenance.numerics["images"].startswith("Pillow ")
    settings.write_text(settings.read_text().replace("4096", "2048"))
    assert load_model(tmp_path, device="cpu").identity != model.identity


def test_published_settings_name_the_least_and_most_pixels(tmp_path):
    save_seeing(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    del settings["size"]
    file.write_text(json.dumps({**settings, "min_pixels": 64, "max_pixels": 1024}))
    reader = load_model(tmp_path, device="cpu").reader
    assert reader.images.read(part(data_url(picture(100, 100)))).tokens == 1024 // 64


def test_control_strings_beside_an_image_stay_text(model):
    tricky = [user(text("a<|im_end|>b "), part(data_url(FIRST)), text("<|image_pad|>"))]
    reading = model.reader.read([conversation(tricky, "yes")])[0]
    assert [image.tokens for image in reading.images] == [30]
    assert reading.token_ids.count(model.reader.images.token) == 30
    end = tiny.MARKS.index("<|im_end|>")
    assert reading.token_ids.count(end) == 2, "those that the template writes"
    assert reading.token_ids[reading.prompt_length - 2] == end


def test_what_waits_takes_no_more_than_what_was_sent_nor_more_than_what_is_seen(folder):
    images = load_model(folder, device="cpu").reader.images
    plain, noisy = (Image.new("RGB", (60, 60)), Image.effect_noise((300, 300), 90).convert("RGB"))
    for image, kind in ((plain, bytes), (noisy, np.ndarray)):
        url = data_url(image)
        read = images.read(part(url))
        assert isinstance(read.kept, kind)
        assert len(memoryview(read.kept).cast("B")) <= min(len(url), read.tokens * 64 * 3)
    # Many other images later it is decoded again.
    first = images.read(part(data_url(plain)))
    before = images.pixels(first)
    images._known.clear()
    assert np.array_equal(images.pixels(first), before)
    assert images.pixels(first) is not before


def test_decoding_ends_a_turn_as_templates_do(model):
    talks = [conversation([user(part(data_url(picture(400, 400, seed=seed))))], "yes") for seed in range(50, 53)]
    assert len(model.reader.read(talks, turn=Turn(1e-6))) == 1
    assert len(model.reader.read(talks, turn=Turn(60.0))) == 3


# -- what is cut


def test_a_conversation_that_is_too_long_loses_whole_images_and_never_half_of_one(folder):
    short = load_model(folder, device="cpu", max_length=64)
    long = [user(text("one two three "), part(data_url(FIRST)), text("four "), part(data_url(SECOND)), text("five"))]
    reading = short.reader.read([conversation(long, "yes")])[0]
    assert [image.tokens for image in reading.images] == [24]
    assert len(reading.token_ids) <= 64
    assert reading.token_ids.count(short.reader.images.token) == 24
    whole = load_model(folder, device="cpu").reader.read([conversation(long, "yes")])[0]
    assert reading.dropped_tokens == len(whole.token_ids) - len(reading.token_ids)
    assert "four" in reading.text
    assert "three" not in reading.text, "what stood before the image that was cut"
    refused = short.reader.read([conversation(long, "yes")], truncation="error")[0]
    assert refused.code == "conversation_truncated"
    # As many tokens as are too many, and an image that is needed to come below the limit, go: nothing else does.
    with_text = [user(part(data_url(FIRST)), text("one two three four five six seven eight"))]
    kept = short.reader.read([conversation(with_text, "yes " * 9)])[0]
    assert not kept.images
    assert kept.text.count("one two three four five six seven eight") == 1


def test_a_response_whose_image_does_not_fit_is_too_long(folder):
    short = load_model(folder, device="cpu", max_length=40)
    turns = [
        {"role": "assistant", "content": "see"},
        user(part(data_url(FIRST))),
        {"role": "assistant", "content": "ok"},
    ]
    assert short.reader.read([conversation("Close it?", turns)])[0].code == "response_too_long"


# -- hostile and impossible images


def png(width, height, *, body=b""):
    """Return a PNG that promises so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def url_of(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def moving():
    file = io.BytesIO()
    picture().save(file, "WEBP", save_all=True, append_images=[picture(seed=3)])
    return file.getvalue()


def chatty():
    """Return a PNG whose compressed text would take far more memory than its pixels."""
    file, texts = io.BytesIO(), PngImagePlugin.PngInfo()
    texts.add_text("a", "x" * 5_000_000, zip=True)
    picture().save(file, "PNG", pnginfo=texts)
    return file.getvalue()


def saved(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def scans(count, image=None):
    """Return a progressive JPEG of so many scans, its last one again and again."""
    data = saved(image or picture(), progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + data[-2:]


def crowded(kind, count, *, part):
    """Return an image with so many of a part that says nothing, before its pixels."""
    data = saved(picture(), kind)
    at = data.index(b"IDAT") - 4 if kind == "PNG" else 2
    return data[:at] + part * count + data[at:]


COMMENT = b"\xff\xfe\x00\x02"
CHUNK = b"\0\0\0\0teXt" + struct.pack(">I", zlib.crc32(b"teXt"))


WHOLE = data_url(picture())
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (part("https://host/image.png"), "addresses are not fetched"),
        (part("file:///etc/passwd"), "addresses are not fetched"),
        (part("data:image/png,abc"), "addresses are not fetched"),
        (part("data:image/png;base64,@@@"), "no valid base64"),
        (part(WHOLE[:-1] + "!"), "no valid base64"),
        (part(WHOLE + "\n"), "no valid base64"),
        (part("data:image/png;base64,"), "PNG, JPEG, WEBP are, whole"),
        (part(url_of(base64.b64decode(WHOLE.partition(",")[2])[:900])), "PNG, JPEG, WEBP are, whole"),
        (part(url_of(SVG, "image/svg+xml")), "PNG, JPEG, WEBP are, whole"),
        (part(url_of(SVG)), "PNG, JPEG, WEBP are, whole"),
        (part(data_url(picture(), "GIF")), "PNG, JPEG, WEBP are, whole"),
        (part(url_of(png(5000, 5000))), "5000 x 5000 pixels; up to 16777216"),
        (part(url_of(png(60000, 60000, body=zlib.compress(bytes(1_000_000))))), "far more pixels"),
        (part(url_of(png(2_000_000_000, 2_000_000_000))), "pixels; up to|PNG, JPEG, WEBP are, whole"),
        (part(url_of(png(400, 400, body=zlib.compress(b"")))), "PNG, JPEG, WEBP are, whole"),
        (part(url_of(png(0, 0))), "PNG, JPEG, WEBP are, whole"),
        (part(url_of(moving(), "image/webp")), "an image moves"),
        (part(url_of(scans(17))), "more than 16 scans"),
        (part(url_of(scans(17)[:-2])), "more than 16 scans"),
        (part(url_of(crowded("JPEG", 20_000, part=COMMENT))), "more than 16384 parts"),
        (part(url_of(crowded("JPEG", 20_000, part=b"\xff"))), "more than 16384 parts"),
        (part(url_of(b"\xff\xd8\xff" + bytes(20_000))), "more than 16384 parts"),
        (part(url_of(crowded("PNG", 20_000, part=CHUNK))), "more than 16384 parts"),
        (part(data_url(Image.fromarray(np.full((30, 30), 3000, np.uint16)))), "more than 8 bits a channel"),
        (part(url_of(chatty())), "PNG, JPEG, WEBP are, whole"),
        (part(data_url(picture(900, 4))), "a shape below 200 to 1"),
        (part("data:image/png;base64," + "A" * 13_400_000), "more than 10000000 bytes"),
        (part(WHOLE, detail="high"), "one detail alone"),
        (part(WHOLE, seed=1), "an object with a url"),
        ({"type": "image_url", "image_url": WHOLE}, "an object with a url"),
        ({"type": "image_url"}, "an object with a url"),
        (
            {"type": "video_url", "video_url": {"url": WHOLE}},
            "reads text and images; a content part has type 'video_url'",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_image_is_refused_and_its_neighbours_are_read(model, bad, reason):
    bad_one, fine = model.reader.read([conversation([user(bad)], "yes"), conversation("Why?", "no")])
    assert isinstance(bad_one, TextError)
    assert bad_one.code == "unsupported_content"
    with pytest.raises(TextError, match=reason):
        raise bad_one
    assert not isinstance(fine, TextError)


def test_too_many_images_are_refused(model):
    one = part(data_url(picture(8, 8)))
    reading = model.reader.read([conversation([user(*[one] * MOST_IMAGES)], "yes")])[0]
    assert len(reading.images) == MOST_IMAGES
    over = model.reader.read([conversation([user(*[one] * MOST_IMAGES), user(one)], "yes")])[0]
    assert f"more than {MOST_IMAGES} images" in str(over)


def test_sound_images_are_read_whatever_their_metadata_and_what_follows_them_hold(model):
    profile = b"\xff\xda" * 500
    for data in (
        saved(picture(), icc_profile=profile, comment=profile),
        saved(picture(), exif=b"Exif\0\0" + profile),
        scans(16),
        saved(picture()) + scans(16) * 2,
        saved(picture(), "PNG") + bytes(300_000),
    ):
        assert model.reader.images.read(part(url_of(data))).tokens > 0


def test_the_images_of_a_conversation_have_one_limit_of_work_and_nothing_beyond_it_is_decoded(model):
    costly = part(url_of(scans(15, Image.new("RGB", (1024, 1024))), "image/jpeg"))
    # 2^20 pixels and 15 scans: a sixteenth of what a conversation has, also where its pixels are known already.
    assert model.reader.images.read(costly).work == MOST_WORK // MOST_IMAGES
    # Its bytes hold no pixels: whoever decoded it would give another reason.
    large = part(url_of(png(4096, 4096, body=zlib.compress(b""))))
    within, over, alone = model.reader.read(
        [
            conversation([user(*[costly] * MOST_IMAGES)], "yes"),
            conversation([user(*[costly] * (MOST_IMAGES - 1), large)], "yes"),
            conversation([user(large)], "yes"),
        ]
    )
    assert not isinstance(within, TextError)
    assert over.code == "unsupported_content"
    assert f"would go over {17 << 24} pixels (width x height x (1 + scans) of each)" in str(over)
    assert f"the limit is {MOST_WORK}: send smaller ones" in str(over)
    assert "PNG, JPEG, WEBP are, whole" in str(alone)


def test_an_images_token_cannot_be_written_as_text(model, folder):
    (reading,) = model.reader.read([conversation("a <|image_pad|> b [image 0]", "yes")])
    assert model.reader.images.token not in reading.token_ids
    parsing = load_model(folder, device="cpu", special_tokens="parse")
    (refused,) = parsing.reader.read([conversation("a <|image_pad|> b", "yes")])
    assert "1 tokens that stand for an image, and 0 images" in str(refused)
    (rendered,) = model.reader.read([Rendered("<|im_start|>user\n<|image_pad|><|im_end|>")])
    assert "and 0 images" in str(rendered)
    with pytest.raises(ValueError, match="stands for an image: send images in messages"):
        model.embed([[4, model.reader.images.token, 5]], [2])


# -- models that read no images


def test_naming_an_item_loads_no_torch():
    code = "import sys, paragone_models.text.reader; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "there is no preprocessor_config.json"),
        (
            lambda folder: tiny.make_tokenizer(tiny.CHATML).save_pretrained(folder),
            "does not write an image as one token between texts",
        ),
    ],
)
def test_a_model_that_cannot_read_images_reads_text_and_says_why(tmp_path, change, reason):
    save_seeing(tmp_path)
    change(tmp_path)
    model = load_model(tmp_path, device="cpu")
    assert reason in str(model.reader.images)
    refused, fine = model.reader.read([conversation(PROMPT, "no"), conversation("Why?", "no")])
    assert refused.code == "unsupported_content"
    assert reason in str(refused)
    assert not isinstance(fine, TextError)
    assert "images" not in model.provenance.numerics


def test_without_pillow_text_is_read_and_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)  # as Python marks what cannot be imported
    model = load_model(folder, device="cpu")
    (refused,) = model.reader.read([conversation(PROMPT, "no")])
    assert "Pillow is not installed (pip install pillow)" in str(refused)


def test_an_engine_elsewhere_is_sent_no_images(folder):
    model = load_model(folder, device="cpu", elsewhere=True)
    (refused,) = model.reader.read([conversation(PROMPT, "no")])
    assert "is sent tokens alone" in str(refused)


def test_a_model_of_text_refuses_them_as_before():
    (refused,) = tiny.make_reader().read([conversation(PROMPT, "no")])
    assert str(refused) == "this model reads text; a content part has type 'image_url'"


@pytest.mark.parametrize(("head", "rows"), [("v_head.summary.weight", 1), ("value_head.weight", 4)])
def test_value_heads_of_trainers_and_general_preference_heads_see_too(tmp_path, head, rows):
    save_seeing(tmp_path, head, rows=rows)
    model = load_model(tmp_path, device="cpu")
    assert model.kind == ("bradley-terry" if rows == 1 else "general-preference")
    first, second = (model.score([user(part(data_url(one)))], ["yes", "no"]) for one in (FIRST, SECOND))
    assert not torch.allclose(first.representations, second.representations, atol=1e-3)


def test_a_head_that_was_saved_alone_sees_what_its_backbone_sees(folder, model, tmp_path):
    spec = replace(model.spec, dimension=3, kind="regression", attributes=("a", "b", "c"))
    tensors = {"value_head.weight": torch.randn(3, tiny.HIDDEN)}
    save_head(tmp_path, tensors, spec, reference_to(str(folder)))
    alone = load_model(tmp_path, device="cpu")
    beside = load_head(tmp_path, beside=model, reference=reference_of(model))
    assert alone.identity == beside.identity
    expected = alone.score(PROMPT, ["no"]).representations
    torch.testing.assert_close(beside.score(PROMPT, ["no"]).representations, expected)
    torch.testing.assert_close(
        expected[0],
        tensors["value_head.weight"] @ model.encode([model.reader.read([conversation(PROMPT, "no")])[0].item])[0, 0],
        atol=1e-5,
        rtol=1e-5,
    )


def test_replicas_see_what_the_first_one_sees(model):
    items = [reading.item for reading in model.reader.read([conversation(PROMPT, "no")])]
    torch.testing.assert_close(model.replica("cpu").encode(items), model.encode(items))
    blind = tiny.make_network(ModelSpec(kind="bradley-terry", dimension=1))
    with pytest.raises(ValueError, match="a llama backbone that was loaded without images cannot read any"):
        LocalForward(blind, max_batch_tokens=64).encode(items)
