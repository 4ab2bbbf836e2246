"""The pairs of data/alpaca/preferences.jsonl: a good answer and one that is worse in one nameable way."""

import ast
import json
import math
import operator
import random
import re
from collections import Counter
from fractions import Fraction
from statistics import median

import pytest
from conftest import ROOT
from safetensors.torch import load_file
from transformers import AutoTokenizer

FAULTS = {
    "wrong_fact",
    "wrong_arithmetic",
    "ignores_a_constraint",
    "invents",
    "answers_another_question",
    "flattery_or_padding",
    "careless",
    "rude_or_preachy",
    "refuses_what_is_harmless",
    "half_done",
    "overconfident",
}
OF_WORDING = {
    "flattery_or_padding",
    "rude_or_preachy",
    "refuses_what_is_harmless",
    "careless",
    "overconfident",
}
KEYS = {"instruction", "input", "chosen", "rejected", "topic", "fault"}
FOLDER = ROOT / "data" / "alpaca"
ROWS = [json.loads(line) for line in (FOLDER / "preferences.jsonl").read_text(encoding="utf-8").splitlines()]
IDS = [f"line {number}" for number, _ in enumerate(ROWS, 1)]
HAN = re.compile(r"[\u4e00-\u9fff]")
NUMBER = re.compile(r"\d+:\d\d\b|\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
EQUATION = re.compile(r"([$\d.,%]+(?: ?[-+×÷] ?[$\d.,%]+)+) ?= ?\$?(\d[\d,]*(?:\.\d+)?)")
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}


def chinese(row: dict) -> bool:
    return bool(HAN.search(row["instruction"]))


def prompt(row: dict) -> str:
    return row["instruction"] + "\n" + (row.get("input") or "")


# Arithmetic ---------------------------------------------------------------------------------------------------------


def worked_out(expression: str) -> Fraction:
    """Return the exact value of a sum of numbers, + - * / % and brackets; anything else is an error."""

    def value(node):
        if isinstance(node, ast.Constant):
            return Fraction(str(node.value))
        return OPERATORS[type(node.op)](value(node.left), value(node.right))

    return value(ast.parse(expression, mode="eval").body)


def worth(number: str) -> Fraction:
    """Return what a written number is worth; a time of day in minutes, as in "22:30"."""
    hours, colon, minutes = number.partition(":")
    return Fraction(int(hours) * 60 + int(minutes)) if colon else Fraction(number.replace(",", ""))


def false_equations(text: str) -> list[str]:
    """Return the equations in a text that do not hold, "9×7=63"."""
    wrong = []
    for left, right in EQUATION.findall(text):
        plain = left.replace("×", "*").replace("÷", "/")
        if worked_out(re.sub(r"[$,% ]", "", plain)) != worth(right):
            wrong.append(f"{left} = {right}")
    return wrong


# What a row may ask of its answers: `check` names one of these and what it takes --------------------------------------


def items(answer: str) -> list[str]:
    return re.findall(r"(?m)^(?:- |\d+\. )(.+)", answer)


CHECKS = {
    "value": lambda answer, value: worth(value) in {worth(number) for number in NUMBER.findall(answer)},
    "words": lambda answer, span: span[0] <= len(re.findall(r"[\w'’-]+", answer)) <= span[1],
    "characters": lambda answer, span: span[0] <= len("".join(answer.split())) <= span[1],
    "lines": lambda answer, span: span[0] <= len(answer.splitlines()) <= span[1],
    "items": lambda answer, span: span[0] <= len(items(answer)) <= span[1],
    "words_per_item": lambda answer, span: all(
        span[0] <= len(item.split()) <= span[1] for item in items(answer)
    ),
    "sorted_items": lambda answer, size: (
        len(items(answer)) == size and sorted(items(answer)) == items(answer)
    ),
    "present": lambda answer, words: all(word.lower() in answer.lower() for word in words),
    "absent": lambda answer, words: not any(word.lower() in answer.lower() for word in words),
}


# Likeness -----------------------------------------------------------------------------------------------------------


def grams(text: str) -> frozenset[str]:
    """Return the runs of four letters, without spaces, marks and case."""
    letters = "".join(re.findall(r"\w", text.lower()))
    return frozenset(letters[start : start + 4] for start in range(max(1, len(letters) - 3)))


def alike(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


# The tests ------------------------------------------------------------------------------------------------------------


def test_the_tools_of_these_tests():
    assert worked_out("(5.4/0.6)*(4.2/0.6)") == 63 and worth("22:30") == 1350 and worth("1,080") == 1080
    assert false_equations("9×7=63, 14 × $1.75 = $24.50, 100 - 30 = 70") == []
    assert false_equations("360×3=1180元") == ["360×3 = 1180"]
    assert alike(grams("Why is the sky blue?"), grams("Why is the sky so blue?")) > 0.5
    with pytest.raises(KeyError):
        worked_out("2**9")


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row(row):
    check = row.get("check")
    assert set(row) - {"check"} == KEYS and all(isinstance(row[key], str) for key in KEYS)
    assert all(row[key] and row[key] == row[key].strip() for key in KEYS - {"input"})
    assert row["fault"] in FAULTS and re.fullmatch("[a-z]+", row["topic"])
    assert row["chosen"] != row["rejected"] and alike(grams(row["chosen"]), grams(row["rejected"])) < 0.95
    assert not re.search("[\ufffd\u200b]|<[|/a-z]", "".join(row[key] for key in KEYS))
    assert false_equations(row["chosen"]) == []
    if row["fault"] in ("wrong_arithmetic", "ignores_a_constraint", "half_done"):
        assert check, "a fault that a program can see needs a check"
    if not check:
        return
    (name, asked), *more = check.items()
    assert name in CHECKS and [key for key, _ in more] == (["expression"] if name == "value" else [])
    assert CHECKS[name](row["chosen"], asked) and not CHECKS[name](row["rejected"], asked)
    if name == "value":
        assert worked_out(check["expression"]) == worth(asked)


def test_there_are_enough_rows_of_every_fault_and_language():
    counts = Counter(row["fault"] for row in ROWS)
    assert len(ROWS) >= 130 and set(counts) == FAULTS and min(counts.values()) >= 6
    assert 0.4 < sum(map(chinese, ROWS)) / len(ROWS) < 0.6
    for fault in FAULTS:
        share = sum(chinese(row) for row in ROWS if row["fault"] == fault) / counts[fault]
        assert 1 / 3 < share < 2 / 3, f"{fault}: {share:.0%} Chinese"
    listed = re.findall(r"(?m)^\| `(\w+)` \| (\d+) \|", (ROOT / "data/README.md").read_text(encoding="utf-8"))
    assert {fault: int(rows) for fault, rows in listed} == counts
    topics = Counter(row["topic"] for row in ROWS)
    assert len(topics) >= 15 and max(topics.values()) < 0.15 * len(ROWS)


@pytest.mark.parametrize("answer", ["chosen", "rejected"])
def test_an_answer_is_in_the_language_of_its_prompt(answer):
    """Apart from translations and from rows whose constraint is the language."""
    other = [
        row
        for row in ROWS
        if chinese(row) != bool(HAN.search(row[answer]))
        and row["fault"] != "ignores_a_constraint"
        and "Chinese" not in row["instruction"]
    ]
    assert other == []


def best_threshold(chosen: list[float], rejected: list[float]) -> float:
    """Return how often the best single bound on a figure tells the two sides apart; 0.5 is chance."""
    hits = [
        sum(figure > bound for figure in chosen) + sum(figure <= bound for figure in rejected)
        for bound in {*chosen, *rejected}
    ]
    return max(max(hits), len(chosen) + len(rejected) - min(hits)) / (len(chosen) + len(rejected))


@pytest.mark.parametrize("part", ["all", "chinese", "english"])
def test_length_does_not_give_the_worse_answer_away(part):
    rows = [row for row in ROWS if part == "all" or chinese(row) == (part == "chinese")]
    chosen, rejected = ([len(row[side]) for row in rows] for side in ("chosen", "rejected"))
    longer, shorter = (sum(map(test, rejected, chosen)) / len(rows) for test in (operator.gt, operator.lt))
    assert 0.4 <= longer <= 0.6 and 0.4 <= shorter <= 0.6
    assert abs(median(rejected) / median(chosen) - 1) < 0.15
    assert best_threshold(chosen, rejected) <= 0.6


def test_length_does_not_give_a_fault_away():
    for fault in FAULTS:
        rows = [row for row in ROWS if row["fault"] == fault]
        longer = sum(len(row["rejected"]) > len(row["chosen"]) for row in rows) / len(rows)
        assert 1 / 3 <= longer <= 2 / 3, f"{fault}: {longer:.0%} of the worse answers are longer"


HABITS = {  # of form, and words of doubt, certainty and address: about as common on either side
    "exclamation mark": "[!！]",
    "question mark": "[?？]",
    "list": r"(?m)^(?:- |\d+\. )",
    "table or code": r"(?m)^\||`",
    "several lines": r"\n",
    "figure": r"\d",
    "colon": "[:：]",
    "quotation marks": '["“]',
    "semicolon": "[;；]",
    "address": r"(?i)\byou\b|您|你",
    "first person": r"\bI\b|我",
    "doubt": r"(?i)\b(?:may|might|could|perhaps|probably|likely|usually)\b|可能|也许|一般|多半",
    "certainty": r"(?i)\b(?:always|never|certain|certainly)\b|一定|必",
    "apology or refusal": r"(?i)\bsorry\b|\bcannot\b|can't|抱歉|不能",
}


@pytest.mark.parametrize("habit", HABITS)
def test_form_does_not_give_the_worse_answer_away(habit):
    shares = [
        sum(bool(re.search(HABITS[habit], row[side])) for row in ROWS) / len(ROWS)
        for side in ("chosen", "rejected")
    ]
    assert abs(shares[0] - shares[1]) <= 0.08


def words(answer: str) -> set[str]:
    letters = HAN.findall(answer)
    return {
        *re.findall(r"[a-z]+|[^\sa-z\u4e00-\u9fff]", answer.lower()),
        *letters,
        *map("".join, zip(letters, letters[1:])),
    }


def test_words_alone_hardly_give_the_worse_answer_away():
    """Naive Bayes on nine tenths of the pairs, asked about the last tenth: it knows no facts, only wording."""
    order = list(range(len(ROWS)))
    right = {True: [], False: []}
    for seed in range(3):
        random.Random(seed).shuffle(order)
        for fold in range(10):
            held = set(order[fold::10])
            train = [ROWS[i] for i in order if i not in held]
            good, bad = (
                Counter(word for row in train for word in words(row[side])) for side in ("chosen", "rejected")
            )
            for row in (ROWS[i] for i in held):
                better, worse = (
                    sum(math.log((good[word] + 1) / (bad[word] + 1)) for word in words(row[side]))
                    for side in ("chosen", "rejected")
                )
                right[row["fault"] in OF_WORDING].append(better > worse)
    of_wording, others = right[True], right[False]
    assert sum(others) / len(others) < 0.6 and sum(of_wording + others) / len(ROWS * 3) < 0.7


def test_no_two_prompts_are_alike():
    """Neither within the file nor with the rows that train or measure beside it."""
    known = json.loads((FOLDER / "instructions.json").read_text(encoding="utf-8"))
    general = (ROOT / "data/general/rows.jsonl").read_text(encoding="utf-8").splitlines()
    known += [json.loads(line) for line in general]
    for field in (prompt, lambda row: row["instruction"]):
        own, others = [grams(field(row)) for row in ROWS], [grams(field(row)) for row in known]
        close = [
            (field(row), field(([*ROWS, *known])[at]))
            for number, row in enumerate(ROWS)
            for at, other in enumerate([*own, *others])
            if at > number and alike(own[number], other) >= 0.5
        ]
        assert close == []


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_no_answer_is_a_template(side):
    found = [grams(row[side]) for row in ROWS]
    pairs = [(i, j) for i in range(len(ROWS)) for j in range(i) if alike(found[i], found[j]) > 0.3]
    assert pairs == []


def test_orpo_learns_the_pairs(run_script, tmp_path):
    """The tiny model has nothing to tell right from wrong by: the pairs it trains on say whether the step is right."""
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:64]), encoding="utf-8")
    run = run_script("data/alpaca/orpo.py", environment={"DATA": str(few)}, EPOCHS=6)
    assert run.status == 0, run.stderr[-2000:]
    metrics = json.loads((run.output / "metrics.json").read_text(encoding="utf-8"))
    before, after = metrics["before"], metrics["after"]
    assert metrics["scenario"] == "orpo" and before.keys() == after.keys()
    assert after["train_rewards/accuracies"] >= before["train_rewards/accuracies"] + 0.2
    assert after["train_rewards/margins"] > before["train_rewards/margins"] + 0.02
    assert after["train_loss"] < before["train_loss"] - 0.3
    assert after["held_out_loss"] < before["held_out_loss"]
    assert load_file(run.output / "lora" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "row, dropped",
    [
        ({}, False),
        ({"rejected": "Yes."}, True),
        ({"chosen": " "}, True),
        ({"rejected": None}, True),
        ({"rejected": "word " * 400}, True),
        ({"instruction": 3}, True),
    ],
    ids=["good", "both alike", "empty", "missing", "too long", "no text"],
)
def test_pairs_that_cannot_be_used_are_dropped(functions, row, dropped):
    module = functions("data/alpaca/orpo.py")
    module.tokenizer, module.MAX_LENGTH = AutoTokenizer.from_pretrained(ROOT / "data/tiny-qwen2.5"), 256
    pair = {"instruction": "Is it?", "input": "", "chosen": "Yes.", "rejected": "No."} | row
    assert module.complete_pair(pair) is not dropped
