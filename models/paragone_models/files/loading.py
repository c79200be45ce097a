"""``load_model``: from a source to a model that answers, or a refusal that says why."""

import copy
import functools
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import torch
import transformers
from torch import nn
from transformers import AutoTokenizer

from paragone_models.errors import ModelLoadError, NonFiniteError, TextError, reason_of
from paragone_models.files import checkpoints, quantised
from paragone_models.files.adapters import base_of, find_adapter
from paragone_models.files.backbones import Resident, Residents, home_of, reference_to
from paragone_models.files.families.backbone import Options, read_backbone, untrusted, with_head
from paragone_models.files.families.family import Checkpoint, Loaded
from paragone_models.files.families.own import SPEC_FILE, read_own
from paragone_models.files.families.registry import read_checkpoint
from paragone_models.files.hashes import code_hash, weights_hash
from paragone_models.files.sources import Resolved, resolve
from paragone_models.forward import LocalForward
from paragone_models.images import ImageReader, image_reader
from paragone_models.kinds import KINDS
from paragone_models.machine import DEFAULTS, ELSEWHERE, Budget, automatic_dtype
from paragone_models.model import PreferenceModel, Provenance
from paragone_models.network import PreferenceNetwork
from paragone_models.rotary import positions_of
from paragone_models.spec import BackboneReference, Bos, Head, ModelSpec, Reasoning, SpecialTokens, Symmetrise
from paragone_models.steps import Aggregation
from paragone_models.text.pair_reader import PairReader
from paragone_models.text.pairs import PairText
from paragone_models.text.reader import TextReader, conversation
from paragone_models.text.template import tokenizer_hash

__all__ = ["Backbone", "load_backbone", "load_head", "load_model", "reference_of"]

logger = logging.getLogger(__name__)

Loader = TypeVar("Loader", bound=Callable[..., Any])

# Read and run at the end of each load.
_CONVERSATION = conversation("Is it raining?", "Yes, so take an umbrella with you.")
_PAIR = PairText(_CONVERSATION.prompt, _CONVERSATION.response, conversation("", "Yes.").response)
_TOO_LONG = ("response_too_long", "conversation_truncated")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spm.model",
)


def _in_one_sentence(load: Loader) -> Loader:
    """Return a loader whose every error is a ``ModelLoadError``.

    Code of many libraries runs on files of many trainers: whatever any of them raises is a reason not to serve.
    """

    @functools.wraps(load)
    def loading(source: str | os.PathLike[str], **options: Any) -> Any:
        try:
            return load(source, **options)
        except ModelLoadError:
            raise
        except Exception as error:
            raise ModelLoadError(f"{source} cannot be loaded: {reason_of(error)}") from error

    return cast("Loader", loading)


@_in_one_sentence
def load_model(
    source: str | os.PathLike[str],
    *,
    kind: str = "auto",
    head: Head = "auto",
    device: str = "auto",
    dtype: str = "auto",
    name: str | None = None,
    revision: str | None = None,
    weights: Mapping[str, float] | Sequence[float] | None = None,
    temperature: float | None = None,
    skew_weight: float | None = None,
    aggregation: Aggregation | None = None,
    max_length: int | None = None,
    special_tokens: SpecialTokens | None = None,
    bos: Bos | None = None,
    reasoning: Reasoning | None = None,
    symmetrise: Symmetrise | None = None,
    chat_template: str | None = None,
    backbone: str | None = None,
    trust_remote_code: bool = False,
    max_batch_tokens: int | Literal["auto"] | None = None,
    deterministic: bool = False,
    prompt_cache_bytes: int | None = None,
    elsewhere: bool = False,
    residents: Residents | None = None,
) -> PreferenceModel:
    """Load a reward or preference model.

    Sources are ``builtin:NAME``, folders, and Hugging Face ids; layouts are this project's own folders, the published
    general preference models (dimension and gate read from tensor shapes), transformers sequence classifiers with one
    label (``bradley-terry``) or several (``regression``), and backbones with a linear head under a name that trainers
    give it. Pickles are opened with ``weights_only``. A reward head that a causal LM keeps in its output embedding
    cannot be detected and has to be named.

    Args:
        kind: ``auto`` detects it; another value must agree with what is found.
        head: ``lm-head-row-0`` takes row 0 of a causal LM's output embedding for the reward head, as the Nemotron
            reward models in Hugging Face form need; ``lm-head-yes-no`` what their model that follows principles needs;
            ``auto`` takes the head that the files name.
        device: ``auto`` takes the GPU where there is one.
        dtype: of the backbone: ``auto``, ``float32``, ``bfloat16`` or ``float16``. ``auto`` is bfloat16 where the
            device multiplies it faster than float32 (on a CPU that is measured), else float32; and for demonstrations.
            Heads and scores are float32 always.
        name: short name; the last part of the source unless given.
        revision: branch, tag or commit of a hub id.
        weights: how attributes merge into the reward: by name, or in the attributes' order.
        skew_weight: of a hybrid model, see ``ModelSpec``.
        aggregation: what makes one reward of the steps of a process model: ``min``, ``prod`` or ``last``.
        max_length: longest conversation, in tokens; at most what the backbone has positions for.
        special_tokens: ``escape`` or ``parse``, see ``ModelSpec``.
        bos: ``once`` or ``as-published``, see ``ModelSpec``.
        reasoning: ``keep`` or ``strip``, see ``ModelSpec``.
        symmetrise: of a pairwise model, see ``paragone_models.symmetrise``; the family's own unless given.
        chat_template: the name of one of the tokenizer's templates, or a file that holds one, to be used for all
            conversations.
        backbone: where the backbone of a head that was saved alone is now, in place of the place that the head names:
            a folder, a hub id or a built-in. It has to have the identity that the head was saved with.
        trust_remote_code: run Python files that come with the checkpoint.
        max_batch_tokens: most tokens of one forward pass; ``auto`` finds the fastest by a warm-up of about ten seconds.
            4,096 on a CPU and 16,384 on a GPU unless given.
        deterministic: make each representation a function of its prompt and response alone, bit for bit on one machine
            and number of threads, whatever it is batched with. Costs speed.
        prompt_cache_bytes: memory for keys and values of prompts, for siblings that arrive later; 0 keeps none. 256 MB
            on a CPU and a tenth of the free memory on a GPU unless given.
        elsewhere: load everything but the backbone's weights, for an engine that runs it elsewhere: the model reads
            text, represents hidden states and compares, and encodes nothing itself. Its head is on the CPU.
        residents: backbones in memory, which heads that were saved alone share; what is loaded for one is added. Nobody
            may change them.

    Returns:
        The model, in evaluation mode.

    Raises:
        ModelLoadError: if the source does not exist, lacks a head or any other weight, has weights that nothing would
            apply, or NaN or infinity among them, or an option does not fit it.
    """
    _check_choices(kind, head, max_batch_tokens)
    where = resolve(os.fspath(source), revision)
    if revision is not None and where.commit is None:
        raise ModelLoadError(f"{source} lies on this machine and has no revisions; leave revision={revision!r} out")
    home, identity = home_of(where, backbone)
    adapter = find_adapter(home.folder)
    base = home if adapter is None else base_of(home)
    options = _options(device, dtype, base.folder, trust_remote_code=trust_remote_code, elsewhere=elsewhere)
    if adapter is not None:
        if elsewhere:
            raise ModelLoadError(
                f"{where.source} has an adapter, which a server that runs its backbone would not apply"
            )
        options = replace(options, adapter=adapter)
    place = Checkpoint(base.folder if identity is None else where.folder, options, kind, head)
    key = (identity or "", *map(str, (options.dtype, options.device, trust_remote_code, elsewhere)))
    resident = residents.get(key) if residents and identity else None
    if identity is None:
        loaded = read_checkpoint(place)
    else:
        known = resident.backbone if resident else None
        loaded = read_own(replace(place, options=replace(options, backbone=known)), base.folder)
        logger.info("%s: its backbone was %s", where.source, "in memory already" if resident else "loaded")
    spec = _overridden(
        loaded.spec,
        temperature=temperature,
        skew_weight=skew_weight,
        aggregation=aggregation,
        max_length=max_length,
        special_tokens=special_tokens,
        bos=bos,
        reasoning=reasoning,
        symmetrise=symmetrise,
        weights=_weights_in_order(weights, loaded.spec),
    )
    _check_length(spec, loaded.network)
    network = loaded.network.to(options.device).eval().requires_grad_(requires_grad=False)
    network.head.spec = spec  # the head was read before the options were known
    # Once here, and not in every answer: what is finite in weights and tokens can still overflow, and is checked again
    # there.
    _refuse_non_finite(where.source, network.head if resident else network)
    budget = _budget(max_batch_tokens, options)
    # Chosen after the weights are on their device: the trial of each way runs there.
    local = LocalForward(
        network,
        max_batch_tokens=budget.tokens,
        deterministic=deterministic,
        prompt_cache_bytes=prompt_cache_bytes,
        proven=resident.way if resident else None,
    )
    if identity is not None and residents is not None:
        residents[key] = Resident(network.backbone, local.way)
    if max_batch_tokens == "auto" and not elsewhere:
        budget = local.warm_up(max_length=spec.max_length)
    logger.info("%s: batches are %s, of %d tokens: %s", where.source, local.batching, budget.tokens, budget.reason)
    reader = _reader(
        _with_tokenizer(home, base),
        replace(loaded, spec=spec),
        trust_remote_code=trust_remote_code,
        chat_template=chat_template,
        images=_images((home, base), network, elsewhere=elsewhere),
    )
    if reader is not None and isinstance(reader.images, ImageReader):
        network.images = reader.images
    # Its identity covers what was read; options that change answers alone enter the fingerprint.
    provenance = Provenance(
        name=name or where.name,
        source=where.source,
        revision=where.commit,
        identity=_identity(spec, (where, home, base), identity, network, reader),
        numerics=_numerics(local, options, quantised.described(base.folder, network.config), network.images),
    )
    model = PreferenceModel(
        network, spec, reader, provenance, max_batch_tokens=budget, first_token=loaded.first_token, local=local
    )
    _prove(model, elsewhere=elsewhere)
    return model


@dataclass(frozen=True)
class Backbone:
    """A backbone without a head, for one to be fitted.

    Attributes:
        module: the bare transformers model, in evaluation mode and frozen, on its device.
        tokenizer: with its chat template.
        reference: what a head that is saved alone names.
    """

    module: nn.Module
    tokenizer: Any
    reference: BackboneReference


@_in_one_sentence
def load_backbone(
    source: str | os.PathLike[str], *, revision: str | None = None, device: str = "auto", dtype: str = "auto"
) -> Backbone:
    """Load a backbone without the head that may lie beside it; arguments as those of ``load_model``.

    Raises:
        ModelLoadError: if the source does not exist, is a head alone, has no tokenizer, or is not a whole backbone.
    """
    name = os.fspath(source)
    reference = reference_to(name, revision)
    where = resolve(name, reference.revision)
    adapter = find_adapter(where.folder)
    base = where if adapter is None else base_of(where)
    options = replace(_options(device, dtype, base.folder, trust_remote_code=False, elsewhere=False), adapter=adapter)
    module = read_backbone(base.folder, options)
    place = _with_tokenizer(where, base)
    if not any((place.tokenizer_folder / file).is_file() for file in _TOKENIZER_FILES):
        raise ModelLoadError(f"{source} has no tokenizer files: there is nothing to read with")
    tokenizer = AutoTokenizer.from_pretrained(place.tokenizer_folder)
    return Backbone(module.to(options.device).eval().requires_grad_(requires_grad=False), tokenizer, reference)


def reference_of(model: PreferenceModel, backbone: str | None = None) -> BackboneReference:
    """Return what a head names that is fitted to the backbone of a loaded model.

    Args:
        backbone: as it was given to ``load_model``.

    Raises:
        ModelLoadError: if the files that it was loaded from are gone, or are others now.
    """
    source, revision = model.provenance.source, model.provenance.revision
    where = resolve(source, revision)
    home, identity = home_of(where, backbone)
    base = home if find_adapter(home.folder) is None else base_of(home)
    if _identity(model.spec, (where, home, base), identity, model.network, model.reader) != model.identity:
        raise ModelLoadError(f"the files of {source} are others than those that it was loaded from: load it anew")
    own = model.spec.backbone
    return reference_to(home.source, home.commit) if own is None or backbone is not None else own


@_in_one_sentence
def load_head(
    source: str | os.PathLike[str],
    *,
    beside: PreferenceModel,
    reference: BackboneReference,
    name: str | None = None,
    chat_template: str | None = None,
) -> PreferenceModel:
    """Load a head that was saved alone, on the backbone of a loaded model, whose memory it shares.

    It answers as ``load_model`` would have it answer, and has the same identity.

    Args:
        source: its folder.
        beside: a model that reads text and runs in this process; the two must not run at the same time.
        reference: of its backbone, from ``reference_of``.
        chat_template: as it was given to ``load_model`` for the other one.

    Raises:
        ModelLoadError: if there is no head, or it names another backbone.
    """
    where = resolve(os.fspath(source), None)
    spec = ModelSpec.from_json((where.folder / SPEC_FILE).read_bytes())
    if spec.backbone != reference:
        raise ModelLoadError(f"{where.source} is a head of another backbone than that of {beside.name}")
    if beside.reader is None:
        raise ModelLoadError(f"{beside.name} has no tokenizer files: there is nothing to read with")
    path = where.folder / checkpoints.HEAD_FILE
    head = with_head(
        beside.network.backbone, spec, checkpoints.read_tensors([path], set(checkpoints.tensor_shapes([path])))
    ).head
    head.to(next(beside.network.parameters()).device).eval().requires_grad_(requires_grad=False)
    _refuse_non_finite(where.source, head)
    home = resolve(reference.source, reference.revision)
    places = (where, home, home if find_adapter(home.folder) is None else base_of(home))
    reader = TextReader(
        copy.deepcopy(beside.reader.tokenizer),
        spec,
        first_token=beside.first_token,
        vocabulary=beside.network.config.get_text_config().vocab_size,
        chat_template=chat_template,
        images=_images(places[1:], beside.network, elsewhere=False),
    )
    provenance = Provenance(
        name=name or where.name,
        source=where.source,
        revision=None,
        identity=_identity(spec, places, reference.identity, beside.network, reader),
        numerics=beside.provenance.numerics,
    )
    return beside.with_head(head, spec, reader, provenance)


def _identity(
    spec: ModelSpec,
    places: tuple[Resolved, Resolved, Resolved],
    backbone: str | None,
    network: PreferenceNetwork,
    reader: TextReader | None,
) -> str:
    """Return the identity of a model.

    Args:
        places: of what was asked for, of its backbone or adapter, and of the adapter's base.
        backbone: identity of the backbone, of a head that was saved alone.
    """
    where, _, base = places
    tokenizer = None if reader is None else reader.tokenizer
    return spec.identity(
        weights_hash((where, base)) if backbone is None else f"{weights_hash((where,))}+{backbone}",
        None if reader is None else tokenizer_hash(reader.tokenizer, reader.signature),
        code_hash((network.backbone, network.config, tokenizer), places),
    )


def _prove(model: PreferenceModel, *, elsewhere: bool) -> None:
    """Read and run one conversation, so that a model which fails at every request fails now.

    Raises:
        ModelLoadError: if it cannot be read, or its forward fails or is not finite.
    """
    source, item = model.provenance.source, None
    if model.reader is not None:
        principle = None if model.spec.principle_question is None else "correctness"
        plain = replace(_CONVERSATION, principle=principle)
        reading = model.reader.read([_PAIR if model.spec.rules.reads_pairs else plain])[0]
        if not isinstance(reading, TextError):
            item = reading.item
        elif reading.code not in _TOO_LONG:
            raise ModelLoadError(f"{source} cannot read a plain conversation: {reading.message}")
    if elsewhere:
        return
    try:
        if item is None:
            token = model.spec.step_token or 0
            model.embed([[token, token]], [1])  # any tokens will do
        elif not bool(torch.isfinite(model.represent(model.encode([item]))).all()):
            raise NonFiniteError("a representation has NaN or infinity in it: check the weights and the dtype")
    except Exception as error:
        raise ModelLoadError(
            f"{source} was loaded, and its first forward pass failed, so it is not served: {reason_of(error)}"
        ) from error


def _check_choices(kind: str, head: str, max_batch_tokens: int | str | None) -> None:
    if kind not in ("auto", *KINDS):
        raise ModelLoadError(f"kind is {kind!r}; it must be auto or one of {', '.join(KINDS)}")
    if head not in get_args(Head):
        raise ModelLoadError(f"head is {head!r}; it must be one of {', '.join(get_args(Head))}")
    if max_batch_tokens not in (None, "auto") and not (isinstance(max_batch_tokens, int) and max_batch_tokens >= 1):
        raise ModelLoadError(f"max_batch_tokens is {max_batch_tokens!r}; it must be at least 1, or auto")


def _overridden(spec: ModelSpec, **overrides: Any) -> ModelSpec:
    """Return the spec with every override that is not None."""
    changes = {field: value for field, value in overrides.items() if value is not None}
    # Judgements were fitted to one temperature and one game; others are nobody's measurement.
    decisive = ("temperature", "skew_weight", "symmetrise")
    if any(changes.get(name, getattr(spec, name)) != getattr(spec, name) for name in decisive):
        changes["calibrated"] = False
    return replace(spec, **changes)


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ModelLoadError(f"device is {device!r}: {str(error).splitlines()[0]}") from error


def _options(device: str, dtype: str, folder: Path, *, trust_remote_code: bool, elsewhere: bool) -> Options:
    # Its head alone runs here, and is small.
    if elsewhere:
        return Options(torch.float32, torch.device("cpu"), trust_remote_code, elsewhere=True)
    return Options(_dtype(dtype, _device(device), folder), _device(device), trust_remote_code)


def _budget(max_batch_tokens: int | str | None, options: Options) -> Budget:
    if isinstance(max_batch_tokens, int):
        return Budget(max_batch_tokens, "given")
    if options.elsewhere:
        return Budget(ELSEWHERE, "the default for a server that makes batches of its own")
    kind = options.device.type
    return Budget(DEFAULTS.get(kind, DEFAULTS["cpu"]), f"the default on {kind}")


def _dtype(dtype: str, device: torch.device, folder: Path) -> torch.dtype:
    if dtype == "auto":
        shapes = checkpoints.tensor_shapes(checkpoints.weight_files(folder))
        own = folder / SPEC_FILE
        chosen = automatic_dtype(
            device,
            parameters=sum(math.prod(shape) for shape in shapes.values()),
            demonstration=own.is_file() and ModelSpec.from_json(own.read_bytes()).demonstration,
        )
        logger.info("%s runs in %s on %s: %s", folder.name, chosen.dtype, device, chosen.reason)
        return chosen.dtype
    if dtype not in _DTYPES:
        raise ModelLoadError(f"dtype is {dtype!r}; it must be auto or one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _weights_in_order(
    weights: Mapping[str, float] | Sequence[float] | None, spec: ModelSpec
) -> tuple[float, ...] | None:
    if weights is None:
        return None
    if not isinstance(weights, Mapping):
        return tuple(float(weight) for weight in weights)
    if unknown := sorted(set(weights) - set(spec.attributes)):
        raise ModelLoadError(f"weights name {', '.join(unknown)}; the attributes are {', '.join(spec.attributes)}")
    return tuple(float(weights.get(attribute, 0.0)) for attribute in spec.attributes)


def _check_length(spec: ModelSpec, network: PreferenceNetwork) -> None:
    # Relative ones reach as far as one likes.
    positions = None if spec.pair_format == "markers" else positions_of(network.config)
    if positions is not None and spec.max_length > positions:
        raise ModelLoadError(f"max_length is {spec.max_length}; the backbone has positions for {positions} tokens")


def _refuse_non_finite(source: str, module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        # A quantised tensor of a class of its own has no such test; the first forward pass shows what is wrong with it.
        if type(tensor.data) is not torch.Tensor:
            continue
        # Numbers of eight bits have none either.
        wide = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
        if tensor.is_floating_point() and not bool(torch.isfinite(wide).all()):
            raise ModelLoadError(
                f"{source} has NaN or infinity in {name}: its scores would be neither numbers nor errors"
            )


def _with_tokenizer(where: Resolved, base: Resolved) -> Resolved:
    """Return which of the two has tokenizer files: an adapter's come first."""
    return where if any((where.tokenizer_folder / file).is_file() for file in _TOKENIZER_FILES) else base


def _reader(
    where: Resolved,
    loaded: Loaded,
    *,
    trust_remote_code: bool,
    chat_template: str | None,
    images: ImageReader | str | None,
) -> TextReader | None:
    if not any((where.tokenizer_folder / file).is_file() for file in _TOKENIZER_FILES):
        if chat_template is not None:
            raise ModelLoadError(f"{where.source} has no tokenizer files and reads no text: leave chat_template out")
        logger.warning("%s has no tokenizer files: it embeds tokens and refuses text", where.source)
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(where.tokenizer_folder, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        own = where.tokenizer_folder / "tokenizer_config.json"
        if not trust_remote_code and own.is_file() and "auto_map" in own.read_text(encoding="utf-8"):
            raise ModelLoadError(untrusted(f"the tokenizer of {where.source}")) from error
        raise ModelLoadError(f"the tokenizer of {where.source} cannot be loaded: {error}") from error
    # A tokenizer may have more tokens than the model has embeddings, after a token was added to one of them.
    config = loaded.network.config.get_text_config()
    if loaded.first_token and (getattr(config, "type_vocab_size", 0) or 0) > 1:
        loaded.network.separator = _separator(where.source, tokenizer)
    if loaded.spec.rules.reads_pairs:
        return PairReader(tokenizer, loaded.spec, chat_template=chat_template)
    reader = TextReader(
        tokenizer,
        loaded.spec,
        first_token=loaded.first_token,
        vocabulary=config.vocab_size,
        chat_template=chat_template,
        images=images,
    )
    for note in reader.template.notes:
        logger.warning("%s: %s", where.source, note)
    if isinstance(reader.images, str):
        logger.warning("%s reads no images, and text alone: %s", where.source, reader.images)
    return reader


def _separator(source: str, tokenizer: Any) -> int | None:
    """Return the token that ends the first text of a pair, or None if a tokenizer gives pairs one token type."""
    pair = tokenizer("a", "b")
    ids, types, separator = pair["input_ids"], pair.get("token_type_ids", ()), tokenizer.sep_token_id
    if not any(types):
        return None
    if separator not in ids or types != [int(separator in ids[:place]) for place in range(len(ids))]:
        raise ModelLoadError(f"the tokenizer of {source} gives a pair the token types {types}, which is not supported")
    return int(separator)


def _images(places: Sequence[Resolved], network: PreferenceNetwork, *, elsewhere: bool) -> ImageReader | str | None:
    """Return what reads images for a model, or why none are read; None if it is a model of text."""
    images = image_reader([place.folder for place in places], network.config)
    if elsewhere and images is not None:
        return "the server that runs its backbone is sent tokens alone"
    return images


def _numerics(
    local: LocalForward, options: Options, quantisation: str | None, images: ImageReader | None
) -> dict[str, str]:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if options.elsewhere:
        return {"dtype": "elsewhere", "device": "elsewhere", "attention": local.attention, **versions}
    return {
        "dtype": str(options.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else options.device.type,
        "attention": local.attention,
        "deterministic": str(local.deterministic).lower(),
        **({} if quantisation is None else {"quantisation": quantisation}),
        **({} if images is None else {"images": f"Pillow {images.version}"}),
        **versions,
    }
