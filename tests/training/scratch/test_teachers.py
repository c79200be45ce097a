"""The linear teacher, what is imprinted, and what a network learns from it."""

import random

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from paragone_evaluation.readers import Pair
from paragone_models.text.reader import TextReader
from paragone_training.data import TokenNoise, group_pairs, read_groups
from paragone_training.preference.backbone import build_model
from paragone_training.preference.objective import Objective
from paragone_training.scratch.lessons import lessons, token_lengths
from paragone_training.scratch.pretraining import reason_documents
from paragone_training.scratch.sections import TeacherSection
from paragone_training.scratch.teachers import distil, fit_teacher, imprint
from tests.training.arguments import pairs, recipe


def taught(rows):
    groups = group_pairs(rows)
    model = build_model(recipe(), [text for group in groups for text in group.responses])
    reader = TextReader(model.tokenizer, model.spec)
    return groups, model, lessons(groups, read_groups(groups, reader), reader), reader


def test_a_frame_and_a_response_make_exactly_what_the_model_sees():
    groups, _, learnt, reader = taught(pairs(2))
    for group, readings, lesson in zip(groups, read_groups(groups, reader), learnt, strict=True):
        for reading, response in zip(readings, lesson.responses, strict=True):
            assert [*lesson.frame.before, *response, *lesson.frame.after] == reading.token_ids
            assert lesson.frame.prompt_length == reading.prompt_length
        assert reader.tokenizer.decode(lesson.responses[0]) == group.responses[0]


def test_the_teacher_is_the_logistic_regression_that_scikit_learn_finds():
    groups, model, learnt, _ = taught(pairs(2))
    teacher = fit_teacher(groups, learnt, token_lengths(model.tokenizer), penalty=2.0)
    texts = [response for lesson in learnt for response in lesson.responses]
    features = []
    for index in range(len(teacher.weights)):
        unit = torch.zeros_like(teacher.weights)
        unit[index] = 1.0
        features.append(type(teacher)(unit, teacher.characters).rewards(texts).numpy())
    table = np.stack(features, axis=1)
    offset = np.cumsum([0] + [len(group.responses) for group in groups])
    labels = [(o + one.first, o + one.second, one.strength) for o, g in zip(offset, groups) for one in g.labels]  # noqa: B905
    first, second, strength = (np.array(column) for column in zip(*labels, strict=True))
    model = LogisticRegression(C=0.5, fit_intercept=False, tol=1e-10, max_iter=5000)
    model.fit(table[first.astype(int)] - table[second.astype(int)], strength > 0, sample_weight=np.abs(strength))
    np.testing.assert_allclose(teacher.weights.numpy(), model.coef_[0], atol=2e-3)


def test_the_teacher_prefers_what_people_preferred():
    groups, model, learnt, _ = taught(pairs(2))
    teacher = fit_teacher(groups, learnt, token_lengths(model.tokenizer), penalty=1.0)
    for group, lesson in zip(groups, learnt, strict=True):
        rewards = teacher.rewards(lesson.responses)
        for label in group.labels:
            assert (rewards[label.first] > rewards[label.second]) == (label.strength > 0)


def test_imprinting_writes_weight_and_length_of_words_and_nothing_for_special_tokens():
    groups, model, learnt, _ = taught(pairs(2))
    teacher = fit_teacher(groups, learnt, token_lengths(model.tokenizer), penalty=1.0)
    embedding = model.network.backbone.get_input_embeddings()
    before = embedding.weight.detach().clone()
    imprint(embedding, teacher, 3.0)
    after = embedding.weight.detach()
    words = teacher.characters > 0
    assert torch.equal(after[:, 2:], before[:, 2:])
    assert after[~words, :2].abs().sum() == 0
    correlation = torch.corrcoef(torch.stack([after[words, 0], teacher.weights[: len(words)][words]]))[0, 1]
    torch.testing.assert_close(correlation, torch.tensor(1.0))
    torch.testing.assert_close(after[words, 0].std(), 3 * before[words].std())


def test_distillation_brings_a_network_closer_to_the_teacher():
    groups, model, learnt, _ = taught(pairs(3))
    teacher = fit_teacher(groups, learnt, token_lengths(model.tokenizer), penalty=1.0)
    section = TeacherSection(steps=40, learning_rate=1e-2, batch_responses=8)
    history = distil(
        model.network,
        model.spec,
        teacher,
        learnt,
        Objective("bradley-terry", 1.0).logits,
        section,
        pad_id=0,
        seed=1,
    )
    assert sum(history[-10:]) < 0.7 * sum(history[:10])


def test_reasons_become_documents_after_their_prompt_each_once():
    _, model, _, reader = taught(pairs(1))
    rows = [Pair("p", "a", "b", 1.0, reason="clear"), Pair("p", "b", "a", -1.0, reason="clear"), Pair("p", "a", "c", 1)]
    (document,) = reason_documents(rows, reader)
    assert model.tokenizer.decode(document) == "<|user|>p<|end|><|system|>clear<|end|>"


def test_token_noise_replaces_about_its_share_and_keeps_what_marks_turns():
    noise = TokenNoise(0.25, range(10, 1000), frozenset({1, 2}))
    sequence = [1, 2] * 500 + [5] * 4000
    changed = noise.apply(sequence, random.Random(0))
    assert changed[:1000] == sequence[:1000]
    assert 800 < sum(one != two for one, two in zip(changed, sequence, strict=True)) < 1200
