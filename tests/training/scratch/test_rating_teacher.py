"""The linear teacher of ratings: against scikit-learn, what it imprints, and what a network learns under any prompt."""

import random

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from paragone_models.text.reader import TextReader
from paragone_training.data import group_pairs, read_groups
from paragone_training.preference.backbone import build_model
from paragone_training.preference.card import Rows
from paragone_training.preference.recipe import Recipe
from paragone_training.preference.train_model import fit
from paragone_training.scratch.lessons import Rewording, features, lessons, token_lengths
from paragone_training.scratch.sections import TeacherSection
from paragone_training.scratch.teachers import distil_ratings, fit_rating_teacher, imprint
from paragone_training.settings import parse
from tests.training.arguments import pairs
from tests.training.preference.test_ratings import NAN, ratings, tables

ATTRIBUTES = ("clarity", "length")


def taught(rows):
    groups = group_pairs([], rows, ATTRIBUTES)
    model = build_model(parse(Recipe, tables()), [text for group in groups for text in group.responses])
    reader = TextReader(model.tokenizer, model.spec)
    return groups, model, lessons(groups, read_groups(groups, reader), reader)


def fitted(penalty=2.0):
    groups, model, learnt = taught(ratings())
    texts = [response for lesson in learnt for response in lesson.responses]
    table = torch.tensor([row for group in groups for row in group.ratings])
    return fit_rating_teacher(texts, table, token_lengths(model.tokenizer), penalty=penalty), texts, table, model


def test_the_teacher_is_the_ridge_regression_that_scikit_learn_finds_on_the_rated_rows():
    teacher, texts, table, _ = fitted()
    rows = features(texts, teacher.characters).double().numpy()
    for column in range(2):
        known = ~torch.isnan(table[:, column]).numpy()
        target = table[known, column].double().numpy()
        theirs = Ridge(alpha=2.0, fit_intercept=False).fit(rows[known] - rows.mean(axis=0), target - target.mean())
        np.testing.assert_allclose(teacher.weights[:, column].numpy(), theirs.coef_, atol=1e-5)


def test_the_teacher_never_leaves_what_people_gave():
    teacher, texts, table, _ = fitted(penalty=1e-3)
    found = teacher.ratings([texts[0] * 9, texts[0][:1]])
    given = table[~torch.isnan(table).any(dim=1)]
    assert bool((found <= torch.maximum(given.max(dim=0).values, teacher.highest)).all())
    assert bool((found >= teacher.lowest).all())
    assert found[0, 1] == teacher.highest[1]


def test_imprinting_writes_a_coordinate_per_attribute_and_one_of_length():
    teacher, _, _, model = fitted()
    embedding = model.network.backbone.get_input_embeddings()
    before = embedding.weight.detach().clone()
    imprint(embedding, teacher, 3.0)
    after, words = embedding.weight.detach(), teacher.characters > 0
    assert torch.equal(after[:, 3:], before[:, 3:])
    assert after[~words, :3].abs().sum() == 0
    for column in range(2):
        weights = teacher.weights[: len(words), column][words]
        correlation = torch.corrcoef(torch.stack([after[words, column], weights]))[0, 1]
        torch.testing.assert_close(correlation, torch.tensor(1.0))
    torch.testing.assert_close(after[words, 0].std(), 3 * before[words].std())


def test_a_made_up_prompt_stands_inside_the_template_and_the_response_stays_where_it_was():
    _, model, learnt = taught(ratings())
    reword, draw = Rewording(learnt), random.Random(0)
    frames = [reword(learnt[0].frame, draw) for _ in range(50)]
    texts = [model.tokenizer.decode(frame.before) for frame in frames]
    assert all(text.startswith("<|user|>") and text.endswith("<|end|><|assistant|>") for text in texts)
    assert 4 < sum(frame == learnt[0].frame for frame in frames) < 20
    gaps = {len(frame.before) - frame.prompt_length for frame in frames}
    assert len(gaps) == 1
    alone = Rewording(learnt[:1])  # a single prompt shows no template: it is left as it is
    assert all(len(alone(learnt[0].frame, draw).before) >= len(learnt[0].frame.before) for _ in range(9))


def test_a_network_learns_the_teachers_ratings():
    teacher, _, _, model = fitted()
    _, _, learnt = taught(ratings())
    imprint(model.network.backbone.get_input_embeddings(), teacher, 1.0)
    section = TeacherSection(steps=40, learning_rate=1e-2, batch_responses=8)
    history = distil_ratings(model.network, model.spec, teacher, learnt, section, pad_id=model.pad_id, seed=1)
    assert sum(history[-10:]) < 0.7 * sum(history[:10])


def test_a_recipe_with_a_teacher_learns_from_it_first_and_resumes_after_it(tmp_path):
    teacher = {"steps": 3, "batch_responses": 6, "penalty": 2.0}
    rows = Rows(pairs(2), ratings(2))
    built = parse(Recipe, tables(teacher=teacher, training={"epochs": 1}))
    whole = fit(built, rows, tmp_path)
    assert (tmp_path / "prepared.safetensors").is_file()
    for checkpoint in tmp_path.glob("checkpoint-*"):
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    again = fit(built, rows, tmp_path, resume=True)
    for name, tensor in whole.model.network.state_dict().items():
        torch.testing.assert_close(again.model.network.state_dict()[name], tensor, rtol=0, atol=0)


def test_an_attribute_that_a_response_lacks_is_left_out_of_the_fit():
    teacher = fit_rating_teacher([[1], [2], [3]], torch.tensor([[1.0], [NAN], [3.0]]), [0, 1, 1, 1], penalty=1.0)
    assert teacher.bias.item() == pytest.approx(2.0)
