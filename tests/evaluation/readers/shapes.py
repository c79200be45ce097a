"""A small copy of every shape of row that is read, each saying the same eight things."""

import json
from dataclasses import dataclass

TOPICS = ("keep bread fresh", "mend a flat tyre", "boil an egg", "fold a shirt", "water a fern", "sharpen a pencil",
          "wash a window", "pack a suitcase")  # fmt: skip
PROMPTS = [f"How do I {topic}?" for topic in TOPICS]
SPLITS = ["train"] * 5 + ["validation", "test", "test"]
STRENGTHS = [3, 1, 2, 1, 3, 2, 1, 2]


@dataclass
class Case:
    """What one row of a file says: its number, and which of the responses was preferred to which."""

    number: int
    better: str
    worse: str

    @property
    def prompt(self):
        return PROMPTS[self.number]

    @property
    def strength(self):
        return STRENGTHS[self.number]

    @property
    def swapped(self):
        return self.number % 2 == 1

    @property
    def third(self):
        return f"Ask somebody who can {TOPICS[self.number]}."

    @property
    def common(self):
        return {"id": f"row{self.number}", "split": SPLITS[self.number]}

    def named(self, better, worse):
        return {better: self.better, worse: self.worse}

    def talk(self, answer):
        return [said("user", self.prompt), said("assistant", answer)]

    def unsaid(self):
        """Return the one pair, of which nobody said how strongly the preferred one was preferred."""
        return [(self.better, self.worse, None)]

    def stated(self, expected):
        return [(better, worse, self.strength) for better, worse, _ in expected]

    def sided(self, one, two):
        """Return the responses under two names, the preferred one second in every other row."""
        return dict(
            zip((one, two), (self.worse, self.better) if self.swapped else (self.better, self.worse), strict=True)
        )


def said(role, content):
    return {"role": role, "content": content}


def talk(*texts):
    return [said(("user", "assistant")[at % 2], text) for at, text in enumerate(texts)]


def pairs(case):
    sign = -1 if case.swapped else 1
    row = {**case.common, "prompt": case.prompt, **case.sided("first", "second"), "strength": sign * case.strength}
    return row, [(case.better, case.worse, case.strength)]


def texts(case):
    row = {**case.common, "prompt": case.prompt, "chosen": case.better, "rejected": case.worse}
    return row, [(case.better, case.worse, None)]


def graded_texts(case):
    row, _ = texts(case)
    return {**row, "strength": case.strength}, [(case.better, case.worse, case.strength)]


def messages_as_prompt(case):
    row, expected = texts(case)
    return {**row, "prompt": [said("user", case.prompt)]}, expected


def conversations(case):
    row, expected = texts(case)
    sides = {side: [said("user", case.prompt), said("assistant", row[side])] for side in ("chosen", "rejected")}
    return {**row, **sides}, expected


def answers(case):
    row, expected = texts(case)
    return {**row, **{side: [said("assistant", row[side])] for side in ("chosen", "rejected")}}, expected


def groups(case):
    comparisons = [{"first": 0, "second": 1, "label": "first"}, {"first": 2, "second": 0, "label": "second"}]
    row = {**case.common, "prompt": case.prompt, "responses": [case.better, case.worse, case.third]}
    return {**row, "comparisons": comparisons}, [(case.better, case.worse, None), (case.better, case.third, None)]


def table(case):
    sign = -1 if case.swapped else 1
    wins = 0.5 + sign * case.strength / 6
    responses = [case.worse, case.better] if case.swapped else [case.better, case.worse]
    # A response that could not be scored has a row and a column of nulls.
    matrix = [[0.5, wins, None], [1 - wins, 0.5, None], [None, None, None]]
    row = {**case.common, "prompt": case.prompt, "responses": [*responses, case.third], "matrix": matrix}
    return row, [(case.better, case.worse, case.strength)]


def preference(case):
    row, labels = table(case)
    return {
        "prompt": row["prompt"], "responses": row["responses"][:2], "probability": row["matrix"][0][1], **case.common
    }, labels  # fmt: skip


def helpsteer_preferences(case):
    sign = 1 if case.swapped else -1  # negative: response_1
    row = {**case.common, "prompt": case.prompt, **case.sided("response_1", "response_2")}
    return {**row, "preference_strength": sign * case.strength}, [(case.better, case.worse, case.strength)]


def judgebench(case):
    row = {"pair_id": f"row{case.number}", "split": SPLITS[case.number], "question": case.prompt, "source": "mmlu-pro"}
    label = "B>A" if case.swapped else "A>B"
    return {**row, **case.sided("response_A", "response_B"), "label": label}, [(case.better, case.worse, None)]


def rewardbench(case):
    row, expected = texts(case)
    return {**row, "subset": "refusals-offensive"}, expected


def rewardbench2(case):
    row, _ = texts(case)
    row |= {"chosen": [case.better], "rejected": [case.worse, case.third], "subset": "Focus"}
    return row, [(case.better, case.worse, None), (case.better, case.third, None)]


def rm_bench(case):
    row, _ = texts(case)
    right, wrong = ([f"{text}{dots}" for dots in ("", ".", "..")] for text in (case.better, case.worse))
    return {**row, "chosen": right, "rejected": wrong, "domain": "chat"}, [(a, b, None) for a in right for b in wrong]


def rated(case):
    return [(case.better, {"helpfulness": 4.0, "verbosity": 1.0}), (case.worse, {"helpfulness": 2.0, "verbosity": 3.0})]


def ratings(case):
    rows = [{**case.common, "id": f"{case.number}{side}", "prompt": case.prompt} for side in "ab"]
    return [row | {"response": text, "ratings": values} for row, (text, values) in zip(rows, rated(case), strict=True)]


def helpsteer(case):
    return [
        {"prompt": case.prompt, "split": SPLITS[case.number], "response": text, **values}
        for text, values in rated(case)
    ]


def ultrafeedback(case):
    completions = [
        {"response": text, "annotations": {name: {"Rating": str(value)} for name, value in values.items()}}
        for text, values in rated(case)
    ]
    return [{"instruction": case.prompt, "split": SPLITS[case.number], "completions": completions}]


def hh(case):
    """Anthropic's HH: transcripts that begin alike, and no prompt."""
    before = f"\n\nHuman: Hello.\n\nAssistant: Hi.\n\nHuman: {case.prompt}\n\nAssistant: "
    return {"chosen": before + case.better, "rejected": before + case.worse}, case.unsaid()


def transcript_prompt(case):
    """Nectar's and others' prompts: a transcript up to where the answer begins."""
    row = {"prompt": f"\n\nHuman: {case.prompt}\n\nAssistant:"}
    return row | {"chosen": f" {case.better}", "rejected": f" {case.worse}"}, case.unsaid()


def implicit(case):
    """TRL's implicit prompt in texts: both begin with it."""
    return {side: f"{case.prompt} {text}" for side, text in case.named("chosen", "rejected").items()}, case.unsaid()


def repeated(case):
    row, expected = implicit(case)
    return row | {"prompt": case.prompt, "margin": case.strength}, case.stated(expected)


def implicit_conversations(case):
    sides = {side: case.talk(text) for side, text in case.named("chosen", "rejected").items()}
    return {**sides, "score_chosen": case.strength + 4.5, "score_rejected": 4.5}, case.stated(case.unsaid())


def binarised(case):
    """HuggingFaceH4's UltraFeedback: the prompt, the chosen conversation twice, scores."""
    row, expected = implicit_conversations(case)
    return {**row, "prompt": case.prompt, "prompt_id": "h", "messages": row["chosen"]}, expected


def argilla(case):
    row, _ = implicit_conversations(case)
    row = {"source": "s", "prompt": case.prompt, "chosen": row["chosen"], "rejected": row["rejected"]}
    return row | {"chosen-rating": 5.0, "rejected-rating": 5.0 - case.strength, "chosen-model": "m"}, case.stated(
        case.unsaid()
    )


def argilla_responses(case):
    row = {"instruction": case.prompt, "chosen_response": case.better, "rejected_response": case.worse}
    return row | {"chosen_avg_rating": 4.0, "rejected_avg_rating": 4.0 - case.strength}, case.stated(case.unsaid())


def skywork(case):
    row, _ = implicit_conversations(case)
    return {side: row[side] for side in ("chosen", "rejected")} | {"source": "s", "subset": "mine"}, case.unsaid()


def written_conversations(case):
    """Conversations as JSON in text columns, as CSV files and some parquet files hold them."""
    row, expected = skywork(case)
    return {side: json.dumps(row[side], ensure_ascii=False) for side in ("chosen", "rejected")}, expected


def parts(case):
    sides = {
        side: [
            said("user", [{"type": "text", "text": case.prompt}]),
            said("assistant", [{"type": "text", "text": text}]),
        ]
        for side, text in case.named("chosen", "rejected").items()
    }
    return sides, case.unsaid()


def axolotl(case):
    row = {"messages": [said("user", case.prompt)]}
    return row | {
        side: said("assistant", text) for side, text in case.named("chosen", "rejected").items()
    }, case.unsaid()


def alpaca(case):
    """An instruction without input, as LLaMA-Factory and axolotl have it, and an empty system."""
    row = {"instruction": case.prompt, "input": "", "system": "", "history": []}
    return row | case.named("chosen", "rejected"), case.unsaid()


def outputs(case):
    return {"instruction": case.prompt, "input": "", "output": [case.better, case.worse]}, case.unsaid()


def sharegpt(case):
    row = {"conversations": [{"from": "human", "value": case.prompt}]}
    sides = {side: {"from": "gpt", "value": text} for side, text in case.named("chosen", "rejected").items()}
    return row | sides, case.unsaid()


def torchtune(case):
    sides = case.named("chosen_conversations", "rejected_conversations")
    return {
        side: [message | {"masked": at == 0} for at, message in enumerate(case.talk(text))]
        for side, text in sides.items()
    }, case.unsaid()


def rendered(case):
    """A prompt that a chat template wrote, up to the answers' header; they end as it ends a turn."""
    row = {"prompt": f"<|im_start|>user\n{case.prompt}<|im_end|>\n<|im_start|>assistant\n"}
    sides = case.named("chosen", "rejected")
    return row | {side: f"{text}<|im_end|>\n" for side, text in sides.items()}, case.unsaid()


def rendered_whole(case):
    asked = f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{case.prompt}<|eot_id|>"
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    sides = case.named("chosen", "rejected")
    return {side: f"{asked}{header}{text}<|eot_id|>" for side, text in sides.items()}, case.unsaid()


def swift(case):
    """A conversation with its answer, and the other answer beside it."""
    return {"messages": case.talk(case.better), "rejected_response": case.worse}, case.unsaid()


def swift_messages(case):
    row = {"messages": case.talk(case.better), "rejected_messages": case.talk(case.worse)}
    return row | {"margin": case.strength}, [(case.better, case.worse, case.strength)]


def nemo_aligner(case):
    row = {"prompt": f"<extra_id_0>System\n\n<extra_id_1>User\n{case.prompt}\n<extra_id_1>Assistant\n"}
    row |= {"chosen_response": f"{case.better}\n<extra_id_1>", "rejected_response": f"{case.worse}\n<extra_id_1>"}
    return row | {"chosen_reward": 4, "rejected_reward": 4 - case.strength}, case.stated(case.unsaid())


def nemo_rl(case):
    best = [{"rank": 0, "completion": [said("assistant", case.better)]}]
    completions = [*best, {"rank": case.strength, "completion": [said("assistant", case.worse)]}]
    if case.swapped:
        completions.reverse()
    row = {"context": [said("user", case.prompt)], "completions": completions}
    return row, [(case.better, case.worse, None if case.strength == 1 else case.strength)]


def nemo_text(case):
    before = f"<extra_id_0>System\n\n<extra_id_1>User\n{case.prompt}\n<extra_id_1>Assistant\n"
    return [{"text": before + text} for text in (case.better, case.worse)], case.unsaid()


def openai(case):
    row = {"input": {"messages": [said("user", case.prompt)], "tools": [], "parallel_tool_calls": True}}
    sides = case.named("preferred_output", "non_preferred_output")
    return row | {side: [said("assistant", text)] for side, text in sides.items()}, case.unsaid()


def summaries(case):
    texts = [{"text": text, "policy": "p", "note": None} for text in case.sided(0, 1).values()]
    row = {"info": {"id": f"t{case.number}", "post": case.prompt, "title": None}, "summaries": texts}
    return row | {"choice": int(case.swapped), "worker": "w"}, case.unsaid()


def summary_axes(case):
    info = {"id": f"t{case.number}", "post": case.prompt, "title": None}
    axes = {"accuracy": 2, "coverage": None, "overall": 6}, {"accuracy": None, "overall": 3}
    return [
        {"info": info, "summary": {"text": text, "policy": "p", "axes": rates}, "worker": "w"}
        for text, rates in zip((case.better, case.worse), axes, strict=True)
    ]


def helpsteer3(case):
    sign = 1 if case.swapped else -1
    row = {"domain": "general", "context": [said("user", case.prompt)], **case.sided("response1", "response2")}
    return row | {"overall_preference": sign * case.strength}, [(case.better, case.worse, case.strength)]


def arena(case):
    """The arena's first file: lists of turns as JSON in texts, and one of three columns is 1."""
    sides = {
        name: json.dumps([text], ensure_ascii=False) for name, text in case.sided("response_a", "response_b").items()
    }
    votes = {"winner_model_a": int(not case.swapped), "winner_model_b": int(case.swapped), "winner_tie": 0}
    return {"prompt": json.dumps([case.prompt]), "model_a": "m", "model_b": "n", **sides, **votes}, case.unsaid()


def winner(case):
    return "model_b" if case.swapped else "model_a"


def ppe(case):
    row = {"question_id": f"q{case.number}", "prompt": case.prompt, **case.sided("response_1", "response_2")}
    return row | {"winner": winner(case)}, case.unsaid()


def arena_conversations(case):
    sides = {name: case.talk(text) for name, text in case.sided("conversation_a", "conversation_b").items()}
    return {"question_id": "q", "model_a": "m", **sides, "winner": winner(case), "turn": 1}, case.unsaid()


def full_conversation(case):
    sides = {name: said("assistant", [{"type": "text", "text": text, "image": None}])
             for name, text in case.sided("model_side_a", "model_side_b").items()}  # fmt: skip
    turn = {"user": said("user", [{"type": "text", "text": case.prompt, "image": None}]), **sides}
    return {"winner": winner(case), "full_conversation": [turn], "language": "en"}, case.unsaid()


def shp(case):
    scores = dict(zip(("score_A", "score_B"), (3, 3 * 2**case.strength)[:: 1 if case.swapped else -1], strict=True))
    row = {"post_id": f"p{case.number}", "domain": "ask", "history": case.prompt, **scores}
    row |= case.sided("human_ref_A", "human_ref_B")
    return row | {"labels": int(not case.swapped)}, [(case.better, case.worse, case.strength)]


def pku(case):
    row = {"prompt": case.prompt, **case.sided("response_0", "response_1"), "is_response_0_safe": True}
    return row | {"better_response_id": int(case.swapped), "safer_response_id": 0}, case.unsaid()


def nectar(case):
    answers = [{"answer": case.worse, "rank": 3.0}, {"answer": case.better, "rank": 1.0}]
    row = {"prompt": f"\n\nHuman: {case.prompt}\n\nAssistant: ", "answers": answers, "num_responses": 2}
    return row, [(case.better, case.worse, 2)]


def if_rewardbench(case):
    row = {"id": f"row{case.number}", "messages": [said("user", case.prompt)], "instruction_type": "Single_Turn"}
    responses = [{"response_id": at, "response": text} for at, text in enumerate((case.worse, case.better))]
    return row | {
        "responses": responses,
        "preference_graph": [{"chosen": {"response_id": 1}, "rejected": {"response_id": 0}}],
    }, case.unsaid()


def best_of(case):
    row = {"question_id": "q", "prompt": case.prompt, "response_1": case.worse, "response_2": case.better}
    return row | {"scores": [False, True], "sampled_conflict_pairs": [[0, 1]]}, case.unsaid()


def kto(case):
    rows = [(case.better, True), (case.worse, False)]
    return [{"prompt": case.prompt, "completion": text, "label": liked} for text, liked in rows]


def kto_messages(case):
    return [{"messages": case.talk(row["completion"]), "kto_tag": row["label"]} for row in kto(case)]


COMPARED = {
    "pairs": pairs,
    "chosen and rejected": texts,
    "chosen and rejected, with strengths": graded_texts,
    "prompt of one message": messages_as_prompt,
    "whole conversations": conversations,
    "answers as messages": answers,
    "groups": groups,
    "annotated": table,
    "annotated, a preference each": preference,
    "helpsteer2-preferences": helpsteer_preferences,
    "judgebench": judgebench,
    "rewardbench": rewardbench,
    "rewardbench2": rewardbench2,
    "rm-bench": rm_bench,
}
"""Shapes of our own and of benchmarks, by layout or what is special: rows hold ids and splits, CSV holds most."""

PUBLISHED = {
    "pairs": (
        hh, transcript_prompt, implicit, repeated, implicit_conversations, binarised, argilla, argilla_responses,
        skywork, written_conversations, parts, axolotl, alpaca, sharegpt, torchtune, swift,
        swift_messages, rendered, rendered_whole, nemo_aligner,
    ),
    "helpsteer3": (helpsteer3,),
    "arena": (arena, ppe),
    "arena-conversations": (arena_conversations, full_conversation),
    "shp": (shp,),
    "pku-saferlhf": (pku,),
    "nectar": (nectar,),
    "summaries": (summaries,),
    "openai-preferences": (openai,),
    "outputs": (outputs,),
    "nemo-rl": (nemo_rl,),
    "nemo-text": (nemo_text,),
    "if-rewardbench": (if_rewardbench,),
    "best-of": (best_of,),
}  # fmt: skip
"""Shapes of data sets and trainers, in which a row has no id of ours."""
LIKED = {"kto": (kto, kto_messages)}
"""Shapes in which single responses were liked or not."""
SUMMARY_AXES = {"summary-axes": summary_axes}
RATED = {"ratings": ratings, "helpsteer2": helpsteer, "ultrafeedback": ultrafeedback}


def cases(preferred=None):
    """Return a case per topic; which response is preferred is by rule, or as given."""
    made = []
    for number, topic in enumerate(TOPICS):
        good = f"To {topic}, take your time, and write down what worked in step {number}."
        bad = f"No idea,{' “really”' * number} sorry."
        made.append(Case(number, bad, good) if preferred and not preferred[number] else Case(number, good, bad))
    return made
