"""Asking models: a local one, a real service, kinds of both sorts, and continuing after an interruption."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from paragone import Client
from paragone_evaluation.asking import AnswerStore, _questions_of, ask_model
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.local_model import LocalScorer
from paragone_evaluation.readers import read_evaluation_set
from paragone_evaluation.scorers import ModelCard, PairAnswer, PairQuestion, Refusal, ServiceScorer
from tests.evaluation.conftest import pair, text, write
from tests.evaluation.readers.test_evaluation_sets import GROUP


class FirstPlace:
    """A pairwise scorer that likes long responses, and the first place."""

    questions_per_call = 3

    def __init__(self, card):
        self.card = replace(card, kind="pairwise", scalar=False, pairwise=True, name="first-place")

    def rate(self, items):
        raise AssertionError(f"a pairwise kind rates nothing, least of all {len(items)} responses")

    def compare(self, pairs):
        return [PairAnswer((len(one.first) - len(one.second)) / 10 + 0.25) for one in pairs]


def test_a_model_that_reads_pairs_is_asked_about_pairs_alone():
    told = {
        "name": "letters",
        "where": "here",
        "identity": "",
        "fingerprint": "",
        "temperature": 1.0,
        "calibrated": False,
    }
    card = ModelCard.of_kind("pairwise", None, attributes=(), pairwise=True, source="", **told)
    assert (card.scalar, card.compares) == (False, True)


class Stops:
    """A scorer that stops answering after some chunks."""

    def __init__(self, scorer, after):
        self.card, self.questions_per_call, self._scorer, self._left = scorer.card, 4, scorer, after

    def rate(self, items):
        return self._count(self._scorer.rate, items)

    def compare(self, pairs):
        return self._count(self._scorer.compare, pairs)

    def _count(self, put, questions):
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        return put(questions)


def asked(path, data, scorer, **options):
    with AnswerStore(path, scorer.card) as store:
        return ask_model(data, scorer, store, **options)


@pytest.mark.parametrize("name", ["bt", "gp", "ratings"])
def test_a_local_model_answers_as_its_own_score_does(tmp_path, pairs_file, models, name):
    data = read_evaluation_set(pairs_file)
    answers = asked(tmp_path / "a.jsonl", data, LocalScorer(models[name]))
    for judgement in (0, 7, 47):
        row = data.cases[judgement]
        texts = [data.responses[node] for node in row.nodes]
        matrix = models[name].score(data.prompts[row.prompt][0], texts).probabilities
        assert 1 / (1 + math.exp(-answers.logit[judgement])) == pytest.approx(matrix[0, 1], abs=1e-5)
    assert answers.refused == {}
    assert answers.answered.all()


@pytest.mark.parametrize("name", ["bt", "gp", "ratings"])
def test_a_service_answers_as_the_same_model_in_this_process(tmp_path, pairs_file, models, url, name):
    data = read_evaluation_set(pairs_file)
    with Client(url) as client:
        scorer = ServiceScorer(client, url=url, model=name)
        hosted = asked(tmp_path / "hosted.jsonl", data, scorer)
        first, second = data.cases[0].nodes
        row = client.preferences(
            [(data.prompts[0][0], data.responses[first], data.responses[second])], model=name
        ).preferences[0]
    local = asked(tmp_path / "local.jsonl", data, LocalScorer(models[name]))
    assert hosted.logit == pytest.approx(local.logit, abs=1e-4)
    # Scalar kinds are asked for rewards: the difference over the temperature is the logit that the service gives.
    assert hosted.logit[0] == pytest.approx(row.logit, abs=1e-5)
    assert scorer.card.identity == LocalScorer(models[name]).card.identity
    assert {name: list(column) for name, column in hosted.attributes.items()}.keys() == local.attributes.keys()


def test_the_default_model_of_a_service_is_asked_where_none_is_named(url):
    with Client(url) as client:
        assert ServiceScorer(client, url=url).card.name == "gp"


def test_a_model_that_cannot_read_is_refused_before_anything_is_asked(models):
    with pytest.raises(EvaluationError, match="no tokenizer"):
        LocalScorer(models["mute"])


def test_a_model_that_cannot_compare_is_refused_on_pairs_with_the_remedy(tmp_path, pairs_file, models, url):
    data = read_evaluation_set(pairs_file)
    with Client(url) as client:
        for scorer in (LocalScorer(models["unweighted"]), ServiceScorer(client, url=url, model="unweighted")):
            assert not scorer.card.compares
            with pytest.raises(
                EvaluationError, match=r"helpful, verbose and has no weights.*give a file of ratings, or"
            ):
                asked(tmp_path / "answers.jsonl", data, scorer)


def test_a_model_that_only_rates_says_the_same_here_hosted_and_from_disk(tmp_path, models, url):
    rows = [{"id": f"r{n}", "prompt": "P?", "response": text(n), "ratings": {"helpful": n % 3}} for n in range(9)]
    data = read_evaluation_set(write(tmp_path / "ratings.jsonl", rows))
    local = asked(tmp_path / "local.jsonl", data, LocalScorer(models["unweighted"]))
    again = asked(tmp_path / "local.jsonl", data, LocalScorer(models["unweighted"]))
    with Client(url) as client:
        hosted = asked(tmp_path / "hosted.jsonl", data, ServiceScorer(client, url=url, model="unweighted"))
    assert not local.answered.any()
    expected = models["unweighted"].score("P?", [row["response"] for row in rows]).attributes
    for name in ("helpful", "verbose"):
        assert local.attributes[name] == pytest.approx(expected[name], abs=1e-5)
        assert hosted.attributes[name] == pytest.approx(expected[name], abs=1e-5)
        assert (again.attributes[name] == local.attributes[name]).all()


def test_ratings_without_a_common_name_or_a_difference_are_refused_by_name(tmp_path, models):
    row = {"id": "a", "prompt": "P?", "response": "x", "ratings": {"kindness": 1}}
    other = read_evaluation_set(write(tmp_path / "kind.jsonl", [row]))
    with pytest.raises(EvaluationError, match=r"rates kindness, and unweighted rates helpful, verbose: no name"):
        asked(tmp_path / "a.jsonl", other, LocalScorer(models["unweighted"]))
    with pytest.raises(EvaluationError, match=r"no two responses of a prompt differ in 'kindness'.*bt rates no"):
        asked(tmp_path / "b.jsonl", other, LocalScorer(models["bt"]))


@pytest.mark.parametrize("name", ["bt", "gp"])
def test_an_interrupted_run_continues_without_asking_again(tmp_path, pairs_file, models, name):
    data, scorer, path = read_evaluation_set(pairs_file), LocalScorer(models[name]), tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        asked(path, data, Stops(scorer, after=2))
    told = []
    resumed = asked(path, data, scorer, progress=lambda done, total: told.append((done, total)))
    assert told[0][0] == 8
    assert told[-1][0] == told[-1][1]
    fresh = asked(tmp_path / "fresh.jsonl", data, scorer)
    assert resumed.logit == pytest.approx(fresh.logit, abs=1e-5)
    again = asked(path, data, Stops(scorer, after=0))
    assert (again.logit == resumed.logit).all()


def test_a_line_that_was_cut_off_is_asked_again(tmp_path, pairs_file, models):
    data, scorer, path = read_evaluation_set(pairs_file), LocalScorer(models["bt"]), tmp_path / "answers.jsonl"
    whole = asked(path, data, scorer)
    path.write_bytes(path.read_bytes()[:-7])
    assert asked(path, data, scorer).logit == pytest.approx(whole.logit, abs=1e-5)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_answers_of_another_model_are_never_mixed_in(tmp_path, pairs_file, models):
    data, path = read_evaluation_set(pairs_file), tmp_path / "answers.jsonl"
    asked(path, data, LocalScorer(models["bt"]))
    with pytest.raises(EvaluationError, match=r"holds the answers of bt .* and gp .* is asked now"):
        AnswerStore(path, LocalScorer(models["gp"]).card)
    path.write_text("something else\n")
    with pytest.raises(EvaluationError, match="no file of answers"):
        AnswerStore(path, LocalScorer(models["bt"]).card)
    with pytest.raises(EvaluationError, match="cannot keep answers"):
        AnswerStore(path / "below" / "a.jsonl", LocalScorer(models["bt"]).card)


@pytest.mark.parametrize("name", ["bt", "gp"])
def test_a_refused_response_becomes_no_number(tmp_path, models, url, name):
    rows = [pair(0), pair(1, first="word " * 400), pair(2)]
    data = read_evaluation_set(write(tmp_path / "f.jsonl", rows))
    local = asked(tmp_path / "a.jsonl", data, LocalScorer(models[name]))
    with Client(url) as client:
        hosted = asked(tmp_path / "b.jsonl", data, ServiceScorer(client, url=url, model=name))
    for answers in (local, hosted):
        assert answers.refused == {"response_too_long": 1}
        assert answers.answered.tolist() == [True, False, True]
        assert math.isnan(answers.logit[1])


def test_a_model_that_answers_nothing_is_an_error(tmp_path, models):
    data = read_evaluation_set(write(tmp_path / "f.jsonl", [pair(0, first="word " * 400)]))
    with pytest.raises(EvaluationError, match=r"answered no question of .*: response_too_long \(1\)"):
        asked(tmp_path / "a.jsonl", data, LocalScorer(models["gp"]))


@pytest.mark.parametrize("name", ["bt", "gp"])
def test_every_pair_of_a_group_is_known_and_antisymmetric(tmp_path, models, name):
    data = read_evaluation_set(write(tmp_path / "f.jsonl", [GROUP]))
    assert len(_questions_of(data)) == 3
    answers = asked(tmp_path / "a.jsonl", data, LocalScorer(models[name]))
    matrix = answers.matrices[0]
    assert (matrix == -matrix.T).all()
    assert answers.logit.tolist() == [matrix[0, 1], matrix[1, 2], matrix[2, 0]]
    probabilities = models[name].score("P?", GROUP["responses"]).probabilities
    assert 1 / (1 + np.exp(-matrix)) == pytest.approx(probabilities, abs=1e-5)


def test_pairwise_kinds_are_asked_in_both_orders_and_told_from_position(tmp_path, models):
    scorer = FirstPlace(LocalScorer(models["bt"]).card)
    rows = [pair(0, first="a" * 9, second="b" * 4), pair(1, first="b" * 4, second="a" * 9, prompt="Prompt 0?")]
    data = read_evaluation_set(write(tmp_path / "f.jsonl", rows))
    answers = asked(tmp_path / "a.jsonl", data, scorer)
    assert answers.logit == pytest.approx([0.75, -0.25])
    assert answers.swapped == pytest.approx([-0.25, 0.75])
    group = read_evaluation_set(write(tmp_path / "g.jsonl", [GROUP]))
    matrix = asked(tmp_path / "b.jsonl", group, scorer).matrices[0]
    assert matrix[0] == pytest.approx([0.0, -0.1, -0.2])


def test_a_service_that_changes_its_model_is_noticed(url):
    with Client(url) as client:
        scorer = ServiceScorer(client, url=url, model="gp")
        scorer.card = replace(scorer.card, fingerprint="0" * 32)
        with pytest.raises(EvaluationError, match="now answers with another model"):
            scorer.compare([PairQuestion("P?", None, "a", "b")])


def test_messages_and_tools_reach_both_kinds_of_model(tmp_path, models, url):
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Water?"}]
    rows = [
        pair(
            0,
            prompt=prompt,
            first={"role": "assistant", "content": "fit kids"},
            second=[{"role": "assistant", "content": "teams"}],
        )
    ]
    data = read_evaluation_set(write(tmp_path / "f.jsonl", rows))
    local = asked(tmp_path / "a.jsonl", data, LocalScorer(models["gp"]))
    with Client(url) as client:
        hosted = asked(tmp_path / "b.jsonl", data, ServiceScorer(client, url=url, model="gp"))
    assert hosted.logit == pytest.approx(local.logit, abs=1e-4)
    assert isinstance(Refusal("code", "message").code, str)
