"""Images in messages: from a data URL to pixels, to the tokens that stand for them, and to what a vision tower reads.

Nothing is fetched, and nothing that a sender says of an image is believed: its format is what its bytes are, its size
what its header says, before a pixel is decoded. An image may wait for long before it is run. What is kept until then is
the smaller one of what was sent and what the model sees of it, so that a few bytes never become many; floats, eight
times as many, are made in the batch.

Shapes: h, w an image's height and width in pixels, as the model sees it.
"""

import base64
import binascii
import hashlib
import importlib.util
import io
import json
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paragone_models.errors import TextError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "IMAGE_MARK",
    "MOST_BYTES",
    "MOST_IMAGES",
    "MOST_PIXELS",
    "MOST_WORK",
    "Image",
    "ImageReader",
    "data_of",
    "image_reader",
    "mark_of",
    "numbers_of",
]

MOST_IMAGES = 16
"""Images of one conversation."""
MOST_BYTES = 10_000_000
"""Bytes of one image, as it was sent, decoded from base64."""
MOST_PIXELS = 1 << 24
"""Pixels of one image, as its header says: what is decoded takes four bytes each."""
MOST_WORK = 16 * MOST_PIXELS
"""Pixels that decoding the images of one conversation goes over: width · height · (1 + scans) of each."""

_KNOWN = ("PNG", "JPEG", "WEBP")
# A progressive JPEG has about ten scans. Each may take a few bytes and goes over all pixels: a file of 140 kB with a
# thousand of them took 9 s to decode.
_MOST_SCANS = 16
# Pillow takes up to three microseconds for each segment of a JPEG and chunk of a PNG, however empty it is: 2.2 s for
# those that fit into an image. Sound ones have a few hundred.
_MOST_PARTS = 1 << 14
# Of segments with a length. What libjpeg passes over without one (restarts, bytes stuffed into a scan) and what it
# refuses is no such segment.
_SEGMENT = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")
_END_OF_IMAGE, _SCAN = b"\xd9", b"\xda"
_DATA_URL = re.compile(r"data:[a-z0-9.+/-]*;base64,", re.IGNORECASE)
# Decoded images that are kept: for siblings, which come close together, and for the batch that follows.
_REMEMBERED_BYTES = 64 << 20
_PROCESSOR_FILE = "preprocessor_config.json"
_PROCESSORS = frozenset({"Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil"})
_TYPES = frozenset({"qwen2_vl", "qwen2_5_vl"})

# Nobody can write it, since it is another in each process.
_MARK = f"image {secrets.token_hex(8)}"
IMAGE_MARK = re.compile(rf"\[{_MARK} (\d+)\]")
"""Stands for an image in a text, with its number among its conversation's, until the text is tokenised."""


Pixels = NDArray[np.uint8]
"""Red, green and blue of an image, resized. [h, w, 3]"""


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """One image as a model sees it.

    Attributes:
        key: hash of the bytes that were sent.
        tokens: how many tokens stand for it.
        work: how many pixels decoding it goes over.
        kept: the bytes that were sent, or its pixels.
    """

    key: bytes
    tokens: int
    work: int
    kept: bytes | Pixels = field(repr=False)


class _Seen(NamedTuple):
    pixels: Pixels
    work: int


def numbers_of(text: str) -> list[int]:
    """Return the numbers of the images whose marks stand in a text, in their order."""
    return [int(number) for number in IMAGE_MARK.findall(text)]


def mark_of(reader: "ImageReader | str", images: list[Image], part: Mapping[str, Any]) -> str:
    """Return the mark of a content part, whose image is read and added to those before it.

    Args:
        reader: what reads images, or why none are read.

    Raises:
        TextError: ``unsupported_content``, if it cannot be read, or is one too many, or too much to decode.
    """
    if isinstance(reader, str):
        raise TextError("unsupported_content", f"this model is served without images: {reader}")
    if len(images) == MOST_IMAGES:
        raise TextError("unsupported_content", f"the conversation has more than {MOST_IMAGES} images: leave some out")
    images.append(reader.read(part, most_work=MOST_WORK - sum(image.work for image in images)))
    return f"[{_MARK} {len(images) - 1}]"


def data_of(url: object) -> bytes:
    """Return the bytes in a data URL.

    Raises:
        TextError: ``unsupported_content``, if it is an address or no base64, or holds too much.
    """
    start = _DATA_URL.match(url) if isinstance(url, str) else None
    if start is None or not isinstance(url, str):
        raise TextError(
            "unsupported_content",
            "an image is sent as a data URL in base64 (data:image/png;base64,…): addresses are not fetched",
        )
    # Three bytes in four letters: not even decoded if it is too long.
    if len(url) - start.end() > -(-MOST_BYTES // 3) * 4:
        raise TextError("unsupported_content", f"an image has more than {MOST_BYTES} bytes: send a smaller one")
    try:
        return base64.b64decode(url[start.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise TextError("unsupported_content", "an image's data URL holds no valid base64") from None


class ImageReader:
    """Read images for one model, from any thread.

    Args:
        processor: transformers' own, which says how large an image is seen and how its pixels are scaled.
        token: id of the token that stands for a part of an image.

    Attributes:
        signature: all that decides what the model sees of an image.
        version: of the library that decodes images.
    """

    def __init__(self, processor: Any, token: int) -> None:
        import PIL

        self.token = token
        self.signature = json.dumps(processor.to_dict(), sort_keys=True, default=str)
        self.version = str(PIL.__version__)
        self._processor = processor
        self._factor = processor.patch_size * processor.merge_size
        self._known: OrderedDict[bytes, _Seen] = OrderedDict()
        self._known_bytes = 0
        self._lock = threading.Lock()

    def read(self, part: Mapping[str, Any], *, most_work: int = MOST_WORK) -> Image:
        """Return the image of a content part ``{"type": "image_url", "image_url": {"url": "data:…"}}``.

        Args:
            most_work: pixels that decoding it may go over: what the images before it left of the conversation's.

        Raises:
            TextError: ``unsupported_content``, if it is no image that is read, or a larger one.
        """
        reference = part.get("image_url")
        if not isinstance(reference, Mapping) or set(reference) - {"url", "detail"}:
            raise TextError("unsupported_content", "an image_url is an object with a url, and perhaps detail")
        if reference.get("detail") not in (None, "auto"):
            raise TextError("unsupported_content", "this model sees images in one detail alone: leave detail out")
        data = data_of(reference.get("url"))
        key = hashlib.sha256(data).digest()
        pixels, work = self._seen(key, data, most_work)
        tokens = pixels.shape[0] * pixels.shape[1] // self._factor**2
        return Image(key, tokens, work, data if len(data) < pixels.nbytes else pixels)

    def pixels(self, image: Image) -> Pixels:
        """Return what the model sees of an image that was read."""
        return self._seen(image.key, image.kept, image.work).pixels if isinstance(image.kept, bytes) else image.kept

    def expanded(self, token_ids: list[int], images: Sequence[Image]) -> list[int]:
        """Return tokens in which each image has as many as stand for it.

        Args:
            token_ids: with one token for each image.

        Raises:
            TextError: ``unsupported_content``, if they have more or fewer: a text may hold such a token's string.
        """
        places = [place for place, token in enumerate(token_ids) if token == self.token]
        if len(places) != len(images):
            raise TextError(
                "unsupported_content",
                f"the text has {len(places)} tokens that stand for an image, and {len(images)} images: such a token "
                "cannot be written as text",
            )
        expanded: list[int] = []
        before = 0
        for place, image in zip(places, images, strict=True):
            expanded += token_ids[before:place]
            expanded += [self.token] * image.tokens
            before = place + 1
        return expanded + token_ids[before:]

    def patches(self, images: Sequence[Image]) -> tuple["Tensor", "Tensor"]:
        """Return what a vision tower reads of images: their patches, and how many of them stand beside each other.

        Returns:
            Patches, float32 [all patches, numbers of one], and time, height and width in patches [images, 3].
        """
        made = self._processor(images=[self.pixels(image) for image in images], do_resize=False, return_tensors="pt")
        return made["pixel_values"], made["image_grid_thw"]

    def _decoded(self, data: bytes, most_work: int) -> _Seen:
        """Return the pixels of an image, resized as the model sees it, and the work that it was."""
        import PIL.Image
        import PIL.ImageOps
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        size = self._processor.size
        try:
            scans = _scans(data)  # before Pillow opens it, which goes through all that stands before its pixels
            opened = PIL.Image.open(io.BytesIO(data), formats=_KNOWN)
            if opened.width * opened.height > MOST_PIXELS:
                raise _too_large(f"{opened.width} x {opened.height}")
            work = opened.width * opened.height * (1 + scans)
            _check_work(work, most_work)
            # A camera's second picture is no movement.
            if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:
                raise TextError("unsupported_content", "an image moves: send one of its frames")
            if opened.mode[0] in "IF":  # what is made of those in eight bits is white
                raise TextError("unsupported_content", "an image has more than 8 bits a channel: save it with 8")
            seen = PIL.ImageOps.exif_transpose(opened).convert("RGB")
            height, width = smart_resize(
                seen.height, seen.width, self._factor, size["shortest_edge"], size["longest_edge"]
            )
            return _Seen(np.asarray(seen.resize((width, height), self._processor.resample)), work)
        except TextError:
            raise
        except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
            raise _too_large("far more") from None
        except Exception as error:  # noqa: BLE001 (whatever a decoder meets in hostile bytes is a reason not to read them)
            raise TextError(
                "unsupported_content",
                f"an image cannot be read: {', '.join(_KNOWN)} are, whole and of a shape below 200 to 1 "
                f"({type(error).__name__})",
            ) from None

    def _seen(self, key: bytes, data: bytes, most_work: int) -> _Seen:
        with self._lock:
            seen = self._known.get(key)
            if seen is not None:
                self._known.move_to_end(key)
        if seen is not None:
            # One that is known counts like any other: what is refused does not hang on what came before.
            _check_work(seen.work, most_work)
            return seen
        seen = self._decoded(data, most_work)
        with self._lock:
            if key not in self._known:  # another thread may have decoded it meanwhile
                self._known[key] = seen
                self._known_bytes += seen.pixels.nbytes
            while self._known_bytes > _REMEMBERED_BYTES and len(self._known) > 1:
                self._known_bytes -= self._known.popitem(last=False)[1].pixels.nbytes
        return seen


def _scans(data: bytes) -> int:
    """Return how often a decoder goes over an image's pixels, by its segments: once unless it is a JPEG.

    Raises:
        TextError: ``unsupported_content``, if a JPEG has too many scans, or it or a PNG too many parts.
    """
    parts, place = 0, 8
    if data.startswith(b"\x89PNG"):
        while place < len(data) and parts <= _MOST_PARTS and data[place + 4 : place + 8] != b"IEND":
            place += 12 + int.from_bytes(data[place : place + 4])
            parts += 1
        _check_parts(parts)
    if not data.startswith(b"\xff\xd8\xff"):
        return 1
    scans, place = 0, 2
    while (segment := _SEGMENT.search(data, place)) is not None:
        # Pillow goes byte by byte over what is no segment before the first scan.
        parts += 1 if scans else 1 + segment.start() - place
        _check_parts(parts)
        place = segment.end()
        if segment[1] != _END_OF_IMAGE:
            place += max(2, int.from_bytes(data[place : place + 2]))
        elif scans:  # what comes behind it is another picture
            break
        scans += segment[1] == _SCAN
        if scans > _MOST_SCANS:
            raise TextError("unsupported_content", f"an image has more than {_MOST_SCANS} scans: save it anew")
    if not scans:
        _check_parts(parts + len(data) - place)
    return scans


def _check_parts(parts: int) -> None:
    if parts > _MOST_PARTS:
        raise TextError("unsupported_content", f"an image has more than {_MOST_PARTS} parts: save it anew")


def _check_work(work: int, most: int) -> None:
    if work > most:
        raise TextError(
            "unsupported_content",
            f"decoding a conversation's images would go over {MOST_WORK - most + work} pixels (width x height x "
            f"(1 + scans) of each), the limit is {MOST_WORK}: send smaller ones, or JPEGs that are not progressive",
        )


def _too_large(size: str) -> TextError:
    return TextError("unsupported_content", f"an image has {size} pixels; up to {MOST_PIXELS} in all are read")


def image_reader(folders: Iterable[Path], config: Any) -> ImageReader | str | None:
    """Return what reads images for a model, or why it reads none; None if it is a model of text.

    Args:
        folders: where the settings of its image processor may lie, the first that has them counts.
        config: transformers' configuration of the backbone.
    """
    if config.model_type not in _TYPES:
        return None
    file = next((folder / _PROCESSOR_FILE for folder in folders if (folder / _PROCESSOR_FILE).is_file()), None)
    if file is None:
        return f"there is no {_PROCESSOR_FILE} beside its weights"
    if importlib.util.find_spec("PIL") is None:
        return "Pillow is not installed (pip install pillow)"
    from paragone_models.rotary import depending_on_length  # which loads torch

    if depending_on_length(config):
        return "its rotary positions depend on the length of the batch"
    settings = json.loads(file.read_text(encoding="utf-8"))
    if settings.get("image_processor_type") not in _PROCESSORS:
        return (
            f"its image processor is {settings.get('image_processor_type')}; read are {', '.join(sorted(_PROCESSORS))}"
        )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    # The same one everywhere: another, which transformers takes where torchvision is there, resizes otherwise.
    processor = Qwen2VLImageProcessorPil.from_pretrained(file.parent)
    vision = config.vision_config
    own = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
    needed = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    if own != needed:
        return f"its image processor makes patches of {own} (size, merged, frames), and its vision tower reads {needed}"
    return ImageReader(processor, config.image_token_id)
