"""The start without labels: what is told of words and length, and that no label is looked at."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from paragone_models.text.reader import TextReader
from paragone_training.data import group_pairs, read_groups
from paragone_training.errors import RecipeError
from paragone_training.preference.backbone import build_model
from paragone_training.preference.card import Rows
from paragone_training.preference.train_model import fit
from paragone_training.scratch.lessons import features, lessons, token_lengths
from paragone_training.scratch.lexical import fit_lexicon, learn_lexicon
from paragone_training.scratch.sections import LexicalSection
from tests.training.arguments import pairs, recipe

SECTION = LexicalSection(steps=30, coordinates=4, batch_responses=9, learning_rate=1e-2)


def taught(rows, **sections):
    groups = group_pairs(rows)
    model = build_model(recipe(**sections), [text for group in groups for text in group.responses])
    reader = TextReader(model.tokenizer, model.spec)
    return model, lessons(groups, read_groups(groups, reader), reader)


def test_coordinates_are_the_principal_directions_of_log_word_counts_and_the_length():
    model, learnt = taught(pairs(4))
    characters = token_lengths(model.tokenizer)
    lexicon = fit_lexicon(learnt, characters, coordinates=3)
    texts = [response for lesson in learnt for response in lesson.responses]
    told = lexicon.coordinates(texts).numpy()
    np.testing.assert_allclose(told.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(told.std(axis=0), 1, atol=1e-5)
    found = features(texts, lexicon.characters).numpy()
    counts = found[:, :-3] - found[:, :-3].mean(axis=0)
    left, size, _ = np.linalg.svd(counts, full_matrices=False)
    expected = left[:, :3] * size[:3]
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0)
    np.testing.assert_allclose(np.abs(told[:, :3]), np.abs(expected), atol=1e-3)
    written = np.array([sum(characters[token] for token in text) for text in texts])
    assert np.corrcoef(told[:, -2], written)[0, 1] == pytest.approx(1, abs=1e-6)


def test_a_network_learns_to_tell_them_and_its_head_stays_as_it_was():
    model, learnt = taught(pairs(4))
    head = {name: tensor.clone() for name, tensor in model.network.head.state_dict().items()}
    lexicon = fit_lexicon(learnt, token_lengths(model.tokenizer), coordinates=4)
    pad = model.tokenizer.pad_token_id
    history = learn_lexicon(model.network, model.spec, lexicon, learnt, SECTION, pad_id=pad, seed=0)
    assert len(history) == 30
    assert np.mean(history[-5:]) < 0.7 * np.mean(history[:5])
    for name, tensor in model.network.head.state_dict().items():
        assert torch.equal(tensor, head[name])


def test_it_never_looks_at_a_label():
    weights = []
    for rows in (pairs(3), [replace(pair, strength=-pair.strength) for pair in pairs(3)]):
        model, learnt = taught(rows)
        lexicon = fit_lexicon(learnt, token_lengths(model.tokenizer), coordinates=4)
        pad = model.tokenizer.pad_token_id
        learn_lexicon(
            model.network, model.spec, lexicon, learnt, SECTION.model_copy(update={"steps": 3}), pad_id=pad, seed=0
        )
        weights.append(model.network.backbone.state_dict())
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name])


def test_an_imprint_of_nothing_leaves_the_embedding_alone():
    tables = []
    for imprint in (0.0, 3.0):
        model, learnt = taught(pairs(3))
        before = model.network.backbone.get_input_embeddings().weight.clone()
        lexicon = fit_lexicon(learnt, token_lengths(model.tokenizer), coordinates=4)
        section = LexicalSection(steps=1, imprint=imprint, learning_rate=1e-12)
        pad = model.tokenizer.pad_token_id
        learn_lexicon(model.network, model.spec, lexicon, learnt, section, pad_id=pad, seed=0)
        tables.append((model.network.backbone.get_input_embeddings().weight - before).abs().max().item())
    assert tables[0] < 1e-6 < tables[1]


def test_a_recipe_begins_with_it_and_a_gate_does_not_disturb_it(tmp_path):
    rows = pairs(3)
    gated = recipe(
        model={"kind": "general-preference", "dimension": 4, "gate": True, "pooling": "mean", "max_length": 128},
        lexical={"steps": 2, "coordinates": 4, "batch_responses": 6},
        backbone={"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32},
    )
    assert fit(gated, Rows(rows, held_out_pairs=rows), tmp_path).judged is not None
    assert (tmp_path / "prepared.safetensors").is_file()


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(RecipeError, match=r"lexical.coordinates is 32; the backbone is 32 wide: ask for fewer"):
        recipe(lexical={"coordinates": 32}, backbone={"hidden_size": 32, "heads": 2})
    with pytest.raises(RecipeError, match=r"lexical.steps is 0; it must be at least 1"):
        recipe(lexical={"steps": 0})
    with pytest.raises(RecipeError, match="remove it with a source"):
        recipe(lexical={}, backbone={"source": "somewhere"})
