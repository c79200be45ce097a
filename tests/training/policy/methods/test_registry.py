"""Every method: its numbers, what it refuses, its steps, its step in exact games; and its name stands nowhere else."""

import io
import re
import tokenize
from pathlib import Path

import numpy as np
import pytest
import torch

from paragone_training import games
from paragone_training.errors import RecipeError
from paragone_training.policy.methods.method import PairTargets, describe
from paragone_training.policy.methods.registry import METHODS, check_needs, knobs, method_of
from tests.training.games.matrices import NASH, ROCK_PAPER_SCISSORS, START

ROOT = Path(__file__).parents[4]
BETWEEN = {tokenize.INDENT, tokenize.NEWLINE, tokenize.NL, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENCODING}
LABELLED = ["inpo", "egpo", "omwu", "ipo"]
NUMBERS = {
    "sppo": {"eta": 0.3},
    "gpo": {"beta": 2.0},
    "inpo": {"eta": 0.5, "tau": 0.1},
    "egpo": {"step": 2.0, "tau": 0.1},
    "omwu": {"step": 1.0, "tau": 0.1},
    "dpo": {"beta": 0.1},
    "ipo": {"tau": 0.5},
}


def test_every_method_has_numbers_here():
    assert list(NUMBERS) == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_describes_itself_with_its_numbers(name):
    method = method_of(name, **NUMBERS[name])
    words = describe(method)
    assert words.startswith(f"{name}: ")
    assert all(f"{knob} {value:g}" in words for knob, value in NUMBERS[name].items())


@pytest.mark.parametrize("name", METHODS)
def test_a_number_that_is_missing_foreign_or_out_of_range_is_refused(name):
    knob, *_ = NUMBERS[name]
    with pytest.raises(RecipeError, match=rf"{name} needs loss\.{knob}; its numbers are"):
        method_of(name, **{**NUMBERS[name], knob: None})
    with pytest.raises(RecipeError, match=rf"\[loss\] of {name}: "):
        method_of(name, **{**NUMBERS[name], knob: 0.0})
    foreign = "eta" if "eta" not in NUMBERS[name] else "beta"
    with pytest.raises(RecipeError, match=rf"{name} has no loss\.{foreign}; .* loss\.{foreign} is for .*: remove it"):
        method_of(name, **NUMBERS[name], **{foreign: 1.0})


def test_the_meaning_of_a_number_names_the_methods_that_have_it():
    assert knobs()["beta"] == (
        "gpo: units of score per nat, the inverse of the step; dpo: weight of the KL to the reference",
        None,
    )
    assert knobs()["label_smoothing"][1] == 0.0


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_cannot_use_is_refused_with_what_it_can(name):
    method = method_of(name, **NUMBERS[name])
    needs = method.needs
    good = {
        "labels": needs.labels[-1],
        "ties": needs.ties[0],
        "win_rates": "with-self",
        "reference": needs.references[0],
    }
    check_needs(method, **good)
    for setting, known in (("labels", needs.labels), ("ties", needs.ties), ("reference", needs.references)):
        every = {
            "labels": ("soft", "sampled", "hard"),
            "ties": ("drop", "keep"),
            "reference": ("initial", "previous", "every-n"),
        }[setting]
        for value in every:
            if value in known:
                check_needs(method, **{**good, setting: value})
            else:
                with pytest.raises(RecipeError, match=re.escape(repr(known[0]))):
                    check_needs(method, **{**good, setting: value})
    if needs.pairs:
        with pytest.raises(RecipeError, match=f"targets.win_rates is for sppo and gpo; {name} is trained on pairs"):
            check_needs(method, **{**good, "win_rates": "without-self"})


def pairs_of(policy: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities of both responses of every ordered pair."""
    size = len(policy)
    first, second = (place.flatten() for place in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    logprob = torch.from_numpy(np.log(policy))
    return logprob[first], logprob[second]


def targets_at(base: np.ndarray, reference: np.ndarray) -> PairTargets:
    preference = torch.from_numpy(ROCK_PAPER_SCISSORS).flatten()
    zeros = torch.zeros_like(preference)
    return PairTargets(preference, zeros, zeros, *pairs_of(base), *pairs_of(reference))


@pytest.mark.parametrize("name", ["inpo", "ipo"])
def test_the_exact_step_is_where_the_loss_over_pairs_of_the_policy_is_least(name):
    method = method_of(name, **NUMBERS[name])
    after, _ = method.exact_step(NASH, None, ROCK_PAPER_SCISSORS, START)
    leaf = torch.from_numpy(np.log(after)).requires_grad_()
    logprob = leaf.log_softmax(dim=0)
    first, second = (place.flatten() for place in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
    weight = torch.from_numpy(np.outer(NASH, NASH)).flatten()
    loss = method.fit.loss(logprob[first], logprob[second], targets_at(NASH, START))
    (gradient,) = torch.autograd.grad((weight * loss).sum(), leaf)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", LABELLED)
def test_methods_with_a_reference_keep_their_regularised_equilibrium(name):
    method = method_of(name, **NUMBERS[name])
    target = games.regularised_nash(ROCK_PAPER_SCISSORS, START, tau=NUMBERS[name]["tau"])
    after, _ = method.exact_step(target, target, ROCK_PAPER_SCISSORS, START)
    np.testing.assert_allclose(after, target, atol=1e-9)


def test_methods_without_a_reference_keep_the_equilibrium_of_their_game():
    after, _ = method_of("sppo", **NUMBERS["sppo"]).exact_step(NASH, None, ROCK_PAPER_SCISSORS, START)
    np.testing.assert_allclose(after, NASH, atol=1e-12)
    scores = np.log(ROCK_PAPER_SCISSORS / ROCK_PAPER_SCISSORS.T)
    nash = games.nash(0.5 + scores / (2 * np.abs(scores).max()))
    after, _ = method_of("gpo", **NUMBERS["gpo"]).exact_step(nash, None, ROCK_PAPER_SCISSORS, START)
    np.testing.assert_allclose(after, nash, atol=1e-9)
    with pytest.raises(ValueError, match="solves no game of preferences"):
        method_of("dpo", **NUMBERS["dpo"]).exact_step(NASH, None, ROCK_PAPER_SCISSORS, START)


def test_the_steps_of_an_iteration():
    steps = {name: [method_of(name, **NUMBERS[name]).steps(iteration) for iteration in (1, 2)] for name in METHODS}
    for name in ("sppo", "gpo", "inpo", "dpo", "ipo"):
        assert steps[name] == [((1, "current", "current"),)] * 2
    assert steps["egpo"] == [((1, "current", "current"), (2, "previous-step", "current"))] * 2
    assert steps["omwu"][0] == ((1, "current", "current"),)
    assert steps["omwu"][1] == ((1, "current", "memory"), (1, "current", "previous-step"))


@pytest.mark.parametrize("name", METHODS)
def test_the_start_in_closed_form_is_the_loss_at_the_base(name):
    method = method_of(name, **NUMBERS[name])
    rates = torch.from_numpy(ROCK_PAPER_SCISSORS @ START)
    first, second = (place.flatten() for place in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
    targets = targets_at(NASH, START)._replace(chosen=rates[first], rejected=rates[second])
    loss = method.fit.loss(*pairs_of(NASH), targets)
    np.testing.assert_allclose(method.fit.start(targets), loss.numpy(), rtol=1e-9)
    assert len(method.fit.goal(targets)) == (18 if method.fit.per_response else 9)
    assert method.fit.scale(0.5) > 0


def test_no_other_code_holds_the_name_of_a_method():
    """Names and strings; comments and docstrings may speak of methods, and ``losses.py`` is the users' door to them."""
    word = re.compile(rf"\b({'|'.join(METHODS)})\b")
    seen = 0
    for part in ("clients", "models", "service", "evaluation", "training"):
        for path in (ROOT / part).rglob("*.py"):
            # Files of pairs that other people's trainers read are named after what they are for.
            own = path.parts[-3:-1] == ("policy", "methods") or path.parent.name in ("games", "annotation")
            if own or path == ROOT / "training" / "paragone_training" / "losses.py":
                continue
            seen += 1
            before = tokenize.NEWLINE
            for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
                docstring = before in BETWEEN and token.string.startswith('"""')
                if token.type in (tokenize.NAME, tokenize.STRING) and not docstring:
                    assert not word.search(token.string), f"{path}:{token.start[0]}: {token.string}"
                before = token.type
    assert seen > 150
