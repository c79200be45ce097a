"""What benchmarks/results.py trains: the variants of each table, on one fold with one seed.

Every variant of a fold and a seed starts from the same backbone, which saw the training texts and no label, and learns
from the same rows. The validation question is learnt from by nobody: ExPO searches its factor there.
"""

import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from paragone_evaluation.measures.ranking import group_score
from paragone_evaluation.readers import read_pairs, read_ratings
from paragone_models.files.loading import load_model
from paragone_models.files.saving import save_model
from paragone_models.network import PreferenceNetwork
from paragone_models.text.reader import TextReader
from paragone_training.data import group_pairs, read_groups
from paragone_training.preference.agreement import judge, represented
from paragone_training.preference.backbone import build_model, reward_on_top
from paragone_training.preference.card import Rows
from paragone_training.preference.extrapolation import along, search
from paragone_training.preference.objective import Objective
from paragone_training.preference.recipe import load_recipe
from paragone_training.preference.train_model import fit, prepare

RECIPES = Path(__file__).parents[1] / "training" / "recipes" / "results"
FOLDS = 4
LOSSES = ("regular", "margin", "scaled")
REWARDS = {f"{loss}, from scratch": [f"loss.name={loss}"] for loss in LOSSES}
VECTORS = {
    "general preference, d = 2": ["model.dimension=2", "model.gate=false"],
    **{
        f"general preference, d = {d}{', gate' if gate else ''}": [
            f"model.dimension={d}",
            f"model.gate={str(gate).lower()}",
        ]
        for d in (4, 6, 8)
        for gate in (False, True)
    },
    "hybrid, d = 1 + 2": ["model.kind=hybrid", "model.dimension=3", "model.gate=false"],
}
ANSWERS = {
    "bradley-terry": [],
    "general preference, d = 4": ["model.kind=general-preference", "model.dimension=4"],
    "hybrid, d = 1 + 2": ["model.kind=hybrid", "model.dimension=3"],
}
TABLES = {
    "losses": [
        *REWARDS,
        "regression",
        *(f"{loss}, from regression{end}" for loss in LOSSES for end in ("", " + ExPO")),
        "helpsteer: scaled, from regression, ratings kept",
    ],
    "vectors": ["regular, from scratch", *VECTORS],
    "answers": list(ANSWERS),
}


class Fold:
    """The rows of one fold, the folder of its start, and what trains on them.

    Args:
        table: whose variants.
        number: of the fold.
        seed: of everything random.
        work: folder for the start and checkpoints.
        data: folder of the corpora.
    """

    def __init__(self, table, number, seed, work, data):
        self.table, self.seed, self.data = table, seed, data
        self.domain = "answers" if table == "answers" else "arguments"
        self.recipe = "answers" if table == "answers" else "rewards"
        self.work = work / f"{self.domain}-{seed}-{number}"
        self.work.mkdir(parents=True, exist_ok=True)
        rows = read_pairs(*self.load(self.recipe).data.train)
        rows = [replace(pair, split="train") for pair in rows]
        names = sorted({self.question(pair) for pair in rows})
        if self.domain == "answers":
            random.Random(0).shuffle(names)  # noqa: S311 - dealing, not secrets
        held_out = set(names[number::FOLDS])
        validation = set() if self.domain == "answers" else {names[(number + 1) % FOLDS]}
        self.train = [pair for pair in rows if self.question(pair) not in held_out | validation]
        self.validation = [pair for pair in rows if self.question(pair) in validation and pair.strength]
        self.held_out_comparisons = [pair for pair in rows if self.question(pair) in held_out]
        self.held_out = [pair for pair in self.held_out_comparisons if pair.strength]
        self.rated, self.held_out_rated = [], []
        if self.domain == "arguments":
            ratings = read_ratings(*self.load("regression").data.ratings)
            name = {id(rating): rating.group.partition("_")[0] for rating in ratings}
            self.rated = [rating for rating in ratings if name[id(rating)] not in held_out | validation]
            self.held_out_rated = [rating for rating in ratings if name[id(rating)] in held_out]

    def load(self, name, settings=()):
        return load_recipe(RECIPES / f"{name}.toml", settings, data=self.data)

    def question(self, pair):
        return pair.prompt if self.domain == "answers" else pair.question

    @property
    def start(self):
        """Folder of the backbone and the tokenizer that saw no label; made once."""
        folder = self.work / "start"
        if not (folder / "paragone.json").is_file():
            recipe = self.load(self.recipe, [f"training.seed={self.seed}"])
            groups = group_pairs(self.train)
            model = build_model(recipe, [text for group in groups for text in (group.pair.prompt, *group.responses)])
            readings = read_groups(groups, TextReader(model.tokenizer, model.spec))
            prepare(recipe, model, Objective("bradley-terry", 1.0), groups, readings, [])
            save_model(folder, model.network, model.spec, model.tokenizer, card="A start.", dtype=torch.float32)
        return folder

    def result(self, variant):
        """Return what a variant says about the held-out rows, as JSON values."""
        began = time.process_time()
        if self.domain == "answers":
            result = self._answers(ANSWERS[variant])
        elif variant in REWARDS:
            result = self._pairs("rewards", REWARDS[variant])
        elif variant in VECTORS:
            result = self._pairs("vectors", VECTORS[variant])
        elif variant == "regression":
            result = self._regression()
        elif variant.endswith("ExPO"):
            result = self._extrapolated(variant.partition(",")[0])
        elif variant.startswith("helpsteer"):
            result = self._from_regression("scaled", keep=1.0)
        else:
            result = self._from_regression(variant.partition(",")[0], keep=0.0)
        return {**result, "cpu_seconds": time.process_time() - began}

    def _loaded(self, name, settings, *, start):
        return self.load(name, [*settings, f"training.seed={self.seed}", start])

    def _trained(self, name, settings):
        """Return what a recipe gives from the fold's start in place of one of its own."""
        recipe = self._loaded(name, settings, start=f"output.folder={self.work}/model")
        backbone = recipe.backbone.model_copy(update={"source": str(self.start)})
        recipe = recipe.model_copy(update={"lexical": None, "backbone": backbone})
        with Scratch(self.work / "checkpoints") as folder:
            return fit(recipe, Rows(self.train, held_out_pairs=self.held_out), folder)

    def _pairs(self, name, settings):
        return judged_values(self._trained(name, settings).judged)

    def _answers(self, settings):
        outcome = self._trained("answers", settings)
        model = outcome.model
        reader = TextReader(model.tokenizer, model.spec)
        objective = Objective(model.spec.kind, model.spec.temperature)
        found = {f"{who}_{what}": [] for who in ("model", "longest", "random") for what in ("regret", "top_one")}
        found |= {"model_tau": [], "longest_tau": []}
        for group in group_pairs(self.held_out_comparisons, ties=True):
            (readings,) = read_groups([group], reader)
            with torch.no_grad():
                values = represented(model.network, readings, budget=64, pad_id=model.pad_id)
            size, human = len(group.responses), np.zeros(len(group.responses))
            for label in group.labels:
                human[label.first] += (np.sign(label.strength) + 1) / 2
                human[label.second] += (1 - np.sign(label.strength)) / 2
            table = objective.logits(values, torch.cartesian_prod(torch.arange(size), torch.arange(size)))
            scored = group_score(table.view(size, size).mean(dim=1).double().numpy(), human)
            longest = group_score([len(text) for text in group.responses], human)
            for who, score in (("model", scored), ("longest", longest)):
                for what in ("regret", "top_one", "tau"):
                    value = getattr(score, what)
                    found[f"{who}_{what}"].append(None if np.isnan(value) else value)
            found["random_regret"].append(scored.random_regret)
            found["random_top_one"].append(scored.chance)
        return {**judged_values(outcome.judged), "groups": found}

    def _rows(self):
        return Rows(self.train, self.rated, self.held_out, self.held_out_rated)

    def _regression(self):
        recipe = self._loaded("regression", [], start=f"backbone.source={self.start}")
        with Scratch(self.work / "checkpoints") as folder:
            outcome = fit(recipe, self._rows(), folder)
        model, folder = outcome.model, self.work / "regression"
        shutil.rmtree(folder, ignore_errors=True)
        save_model(folder, model.network, model.spec, model.tokenizer, card="A rating model.", dtype=torch.float32)
        return {**judged_values(outcome.judged), **rating_values(outcome.after.errors), "weights": model.spec.weights}

    def _from_regression(self, loss, *, keep):
        settings = [f"loss.name={loss}", f"loss.ratings={keep}"]
        recipe = self._loaded("helpsteer", settings, start=f"model.start={self.work}/regression")
        with Scratch(self.work / "checkpoints") as folder:
            outcome = fit(recipe, self._rows(), folder)
        if not keep:
            torch.save(outcome.model.network.state_dict(), self.work / f"{loss}.pt")
        return {**judged_values(outcome.judged), **rating_values(outcome.after.errors, outcome.before.errors)}

    def _extrapolated(self, loss):
        """Search the factor on the validation question, from the regression with its merged attributes on top."""
        recipe = self._loaded("helpsteer", [], start=f"model.start={self.work}/regression")
        model = load_model(str(self.work / "regression"), device="cpu", dtype="float32")
        spec = replace(recipe.spec, temperature=model.spec.temperature)
        network = PreferenceNetwork(model.network.backbone, reward_on_top(model.network.head, model.spec, spec))
        begin = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        end = torch.load(self.work / f"{loss}.pt", weights_only=True)
        objective = Objective("helpsteer", spec.temperature)
        pad = model.reader.tokenizer.pad_token_id

        def said(groups, readings):
            return judge(network, objective, groups, readings, budget=64, pad_id=pad)

        validation = group_pairs(self.validation)
        readings = read_groups(validation, model.reader)

        def summary(alpha):
            network.load_state_dict(along(begin, end, alpha))
            return said(validation, readings).summary()

        alpha = search(summary)[0].alpha
        network.load_state_dict(along(begin, end, alpha))
        groups = group_pairs(self.held_out)
        return {**judged_values(said(groups, read_groups(groups, model.reader))), "alpha": alpha}


class Scratch:
    """A folder that is empty at first and gone afterwards."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.folder

    def __exit__(self, *error):
        shutil.rmtree(self.folder, ignore_errors=True)


def judged_values(judged):
    return {
        "logit": [round(value, 5) for value in judged.logit.tolist()],
        "strength": judged.strength.tolist(),
        "length_right": judged.length_right.tolist(),
        "matched": judged.matched.astype(int).tolist(),
        "question": judged.question.tolist(),
    }


def rating_values(errors, before=None):
    values = {"errors": dict(zip(errors.attributes, errors.error, strict=True))}
    values["constant"] = dict(zip(errors.attributes, errors.constant, strict=True))
    if before:
        values["errors_before"] = dict(zip(before.attributes, before.error, strict=True))
    return values
