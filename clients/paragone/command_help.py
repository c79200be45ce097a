"""What the help of ``paragone`` says of each command: a line, and an example that can be pasted."""

__all__ = ["EXAMPLES", "EXIT_CODES", "SUMMARIES"]

SUMMARIES = {
    "annotate": "Score every row of data files, and make pairs for DPO.",
    "ask": "Ask which of two responses is preferred.",
    "bench": "Measure how fast a service answers.",
    "calibrate": "Fit the temperature of a model and store it with it.",
    "data": "Say what data files hold, and convert them.",
    "doctor": "Check this installation and what a server needs, and say what to do.",
    "export": "Write a model for other programs, vLLM for one.",
    "eval": "Measure how well a model agrees with people.",
    "init": "Write a server's file or a recipe, by a few questions.",
    "key": "Make keys for a server.",
    "serve": "Serve reward and preference models over HTTP.",
    "verify": "Compare a reward server with its model, and name what differs.",
    "train": "Train preference models and policies.",
    "watch": "Show how far a run of training or annotating is.",
}
"""By command; shown without importing any of them."""

EXAMPLES = {
    "annotate": "paragone annotate pairs.jsonl scored.jsonl --url http://127.0.0.1:8000",
    "ask": "paragone ask 'TV or books?' 'Books, because they last.' 'idk'",
    "bench": "paragone bench builtin:mini-bradley-terry --groups 2 --turns 1 --clients 1",
    "calibrate": "paragone calibrate pairs.jsonl --model builtin:mini-bradley-terry --output calibrated",
    "data": "paragone data pairs.jsonl --convert rows.jsonl",
    "doctor": "paragone doctor --quick",
    "eval": "paragone eval pairs.jsonl --url http://127.0.0.1:8000 --output evaluation",
    "export transformers": "paragone export transformers runs/judge classifier",
    "export triton": "paragone export triton builtin:mini-bradley-terry repository",
    "export vllm": "paragone export vllm runs/judge backbone",
    "init recipe": "paragone init recipe --data pairs.jsonl --backbone none --yes",
    "init server": "paragone init server --source builtin:mini-bradley-terry --yes",
    "key new": "paragone key new training --file keys.txt",
    "serve": "paragone serve --model judge=builtin:mini-bradley-terry --port 8000",
    "train answers": "paragone train answers samples.parquet --output answers.json",
    "train extrapolate": "paragone train extrapolate --from runs/a --to runs/b --output runs/c --alpha 1.5",
    "train head": "paragone train head recipe.toml --dry-run",
    "train language": "paragone train language language.toml --dry-run",
    "train model": "paragone train model recipe.toml --output runs/judge",
    "train policy": "paragone train policy policy.toml --dry-run --offline",
    "watch": "paragone watch runs/judge --once",
    "verify": "paragone verify mini-bradley-terry --url http://127.0.0.1:8000",
}
"""By command, with the subcommand of those that have some; the last lines of its help."""

EXIT_CODES = {
    0: "done",
    1: "failed: no service answers, a file cannot be written, what was checked is not so",
    2: "wrong usage or input: an option, a recipe, a data file, a model that cannot be loaded",
    70: "of `serve`: something was stuck for too long, see the watchdog",
    130: "interrupted by Ctrl-C",
}
"""What the exit code of every command means."""
