"""The tables of docs/results.md: every variant on every fold with every seed, then means and intervals.

    python benchmarks/results.py losses --data FOLDER     # (a) regular, margin, scaled; two starts; ExPO
    python benchmarks/results.py vectors --data FOLDER    # (b) Bradley-Terry against vectors and hybrids
    python benchmarks/results.py answers --data FOLDER    # (c) best of four answers
    python benchmarks/results.py show                     # the tables, from what was run
    python benchmarks/results.py show --write             # and into docs/results.md

Questions are dealt into four folds; each fold is held out in turn, by five seeds (start, head, order).
What was run is not run again: one JSON file per variant, seed and fold in --work. Two processes of one thread each.
"""

import argparse
import json
import logging
import re
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from results_tables import tables
from results_variants import FOLDS, TABLES, Fold
from texts import add_data, corpora

PAGE = Path(__file__).parents[1] / "docs" / "results.md"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*TABLES, "show"])
    add_data(parser, otherwise="needed by all but show")
    parser.add_argument("--work", type=Path, default=Path("runs/results"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/results.md")
    arguments = parser.parse_args()
    if arguments.table == "show":
        show(arguments.work, write=arguments.write)
        return
    data = corpora(arguments.data)
    began, jobs = time.monotonic(), [(seed, fold) for seed in range(arguments.seeds) for fold in range(FOLDS)]
    with ProcessPoolExecutor(arguments.processes, get_context("spawn"), initializer=quiet) as pool:
        waiting = [pool.submit(run, arguments.table, seed, fold, arguments.work, data) for seed, fold in jobs]
        for number, done in enumerate(as_completed(waiting), start=1):
            print(f"{number}/{len(jobs)}: {done.result()}, {time.monotonic() - began:.0f} s", flush=True)


def quiet():
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")


def run(table, seed, number, work, data):
    fold = Fold(table, number, seed, work, data)
    # What goes on from a rating model needs it in the fold's folder, whether or not its numbers are there already.
    for variant in TABLES[table]:
        path = result_path(work, table, variant, seed, number)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part")
            unfinished.write_text(json.dumps(fold.result(variant)))
            unfinished.rename(path)
    return f"seed {seed}, fold {number}"


def result_path(work, table, variant, seed, number):
    domain = "answers" if table == "answers" else "arguments"
    name = re.sub(r"[^a-z0-9]+", "-", variant.lower()).strip("-")
    return work / domain / name / f"{seed}-{number}.json"


def found(work, table):
    """Return results by variant, as {seed: [fold, …]}; only seeds whose folds are all there.

    Nothing for a table of which a variant has no seed: tables share variants, and another one may have been run.
    """
    results = {}
    for variant in TABLES[table]:
        seeds = {}
        for seed in range(100):
            paths = [result_path(work, table, variant, seed, number) for number in range(FOLDS)]
            if all(path.is_file() for path in paths):
                seeds[seed] = [json.loads(path.read_text()) for path in paths]
        if seeds:
            results[variant] = seeds
    return results if len(results) == len(TABLES[table]) else {}


def show(work, *, write):
    page = PAGE.read_text(encoding="utf-8") if write else ""
    for name, text in tables({table: found(work, table) for table in TABLES}).items():
        print(text, end="\n\n")
        if write:
            begin, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
            head, rest = page.split(begin)
            page = f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    if write:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
