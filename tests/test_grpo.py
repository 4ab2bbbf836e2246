"""The extractors, the rewards, the data and the runs of grpo_r1.py."""

import ast
import json
import math
import operator
import re
import time
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, kill_in_training
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

SCRIPT = "grpo_r1.py"
GOOD = "<reasoning>\n48/2 = 24\n</reasoning>\n<answer>\n24\n</answer>\n"


@pytest.fixture(scope="session")
def script(functions):
    return functions(SCRIPT)


def answered(text: str) -> str:
    return GOOD.replace("\n24\n<", f"\n{text}\n<")


HASH = [
    ("She sold 48/2 = <<48/2=24>>24.\n#### 24", "24"),
    ("#### -3", "-3"),
    ("x\n#### 1,000", "1,000"),
    ("x\n#### 3.5  ", "3.5"),
    ("x\n####24", "24"),
    ("x\n#### $12.50\n", "$12.50"),
    ("x\r\n#### 7\r\n", "7"),
    ("#### 1\nno, rather\n#### 2", "2"),
    ("x #### 5", "5"),
    ("#### 24\nSome words after it.", "24"),
    ("no marker", None),
    ("", None),
    ("x\n####", None),
    ("x\n####   \n", None),
    ("x\n### 24", None),
    ("共有\n#### 24个", "24个"),
]


@pytest.mark.parametrize("text,answer", HASH)
def test_extract_hash_answer(script, text, answer):
    assert script.extract_hash_answer(text) == answer


XML = [
    (GOOD, "24"),
    ("<answer>24</answer>", "24"),
    ("<answer> 24 </answer> and so on", "24"),
    ("<answer>\n\n24\n\n</answer>", "24"),
    ("<answer>two\nlines</answer>", "two\nlines"),
    ("<answer></answer>", ""),
    ("24", ""),
    ("", ""),
    ("<answer>24", ""),
    ("24</answer>", ""),
    ("</answer>24<answer>", ""),
    ("<answer>24</answer><answer>25</answer>", ""),
    ("<answer>24</answer>\n<answer>24</answer>", ""),
    ("<answer><answer>24</answer></answer>", ""),
    ("<answer>24<answer>", ""),
    ("<Answer>24</Answer>", ""),
    ("<answer>24</answer></answer>", ""),
    ("<reasoning>the tag <answer> comes last</reasoning><answer>24</answer>", ""),
    ("<answer>a < b</answer>", "a < b"),
]


@pytest.mark.parametrize("text,answer", XML)
def test_extract_xml_answer(script, text, answer):
    assert script.extract_xml_answer(text) == answer


NUMBERS = [
    ("24", 24), ("-3", -3), ("−3", -3), ("－３", -3), ("+7", 7), ("3.5", Fraction(7, 2)), (".5", Fraction(1, 2)),
    ("1,000", 1000), ("$1,000.00", 1000), ("1000.0", 1000), ("-$5", -5), ("$-5", -5), ("￥１２", 12), ("1，000", 1000),
    ("1,234,567.5", Fraction(2469135, 2)), ("1/2", Fraction(1, 2)), ("-1/2", Fraction(-1, 2)), ("2/4", Fraction(1, 2)),
    ("50%", 50), ("50 ％", 50), ("24 apples", 24), ("一共24个", 24), ("24 m²", 24), ("24 m2", 24), ("24㎡", 24),
    ("x = 24", 24), ("24 (24.0)", 24), ("24.", 24), ("60 km/h", 60), ("٢٤", 24), ("007", 7), ("**24**", 24), ("*24*", 24), ("`24`", 24),
    ("**$18**", 18), ("$70K", 70000), ("1.5k", 1500), ("70 km", 70), ("\\frac{1}{2}", Fraction(1, 2)), ("\\boxed{42}", 42),
    ("1{,}234", 1234), ("\\$1\\,234", 1234), ("18 cm^2", 18), ("18 m^{2}", 18), ("$18$", 18), ("\\(18\\)", 18), ("18\\%", 18),
    ("5 times 5", None), ("5 x 5", None), ("9 plus 9", None), ("18 / 3 = 6", None), ("2^3", None), ("5*5*5", None), ("70K or 80K", None),
    ("24 or 25", None), ("12 + 12", None), ("12+12=24", None), ("5-5", None), ("5 * 5", None), ("*5", None),
    ("3 1/2", None), ("1/0", None), ("1/2/3", None), ("1,00", None), ("1,000,00", None), ("1 000", None),
    ("5²", None), ("²", None), ("½", None), ("2½", None), ("①", None), ("3万", None), ("2 million", None),
    ("1e3", None), ("x24", None), ("nan", None), ("inf", None), ("", None), ("twenty", None), ("9" * 9999, None),
]  # fmt: skip


@pytest.mark.parametrize("text,value", NUMBERS)
def test_number_of(script, text, value):
    assert script.number_of(text) == value


CORRECT = [
    (GOOD, "24", 2.0),
    (GOOD.strip(), "24", 2.0),
    ("<answer>24</answer>", "24", 2.0),
    (answered("1,000"), "1000", 2.0),
    (answered("$1,000.00"), "1,000", 2.0),
    (answered("1000.0"), "$1,000", 2.0),
    (answered("-3"), "-3", 2.0),
    (answered("3"), "-3", 0.0),
    (answered("3.50"), "3.5", 2.0),
    (answered("1/2"), "0.5", 2.0),
    (answered("50%"), "50", 2.0),
    (answered("0.5"), "50", 0.0),
    (answered("２４"), "24", 2.0),
    (answered("24 apples"), "24", 2.0),
    (answered("25"), "24", 0.0),
    (answered("2 4"), "24", 0.0),
    (answered("24 or 25"), "24", 0.0),
    (answered("12 + 12"), "24", 0.0),
    (answered("4²"), "4", 0.0),
    (answered(""), "24", 0.0),
    (GOOD + GOOD, "24", 0.0),
    (GOOD + "The answer is 24.", "24", 2.0),
    ("24", "24", 0.0),
    ("#### 24", "24", 0.0),
    ("<answer>24", "24", 0.0),
    ("<answer>23</answer>\n24\n#### 24\n\\boxed{24}", "24", 0.0),
    ("", "24", 0.0),
    (answered("Paris"), "Paris", 2.0),
    (answered("Rome"), "Paris", 0.0),
    ("no tags", "Paris", 0.0),
    (answered("24"), 24, 2.0),
]


@pytest.mark.parametrize("text,right,reward", CORRECT)
def test_correctness_reward(script, text, right, reward):
    assert script.correctness_reward_func([""], [text], [right]) == [reward]


INT = [
    ("24", 0.5), ("-3", 0.5), ("−3", 0.5), ("1,000", 0.5), ("$1,000.00", 0.5), ("1000.0", 0.5), ("２４", 0.5), ("50%", 0.5),
    ("0", 0.5), ("3.5", 0.0), ("1/2", 0.0), ("4/2", 0.0), ("²", 0.0), ("5²", 0.0), ("½", 0.0), ("24 apples", 0.0),
    ("24 or 25", 0.0), ("12+12", 0.0), ("", 0.0), ("--3", 0.0), ("*3", 0.0), ("twenty", 0.0), ("3万", 0.0), ("1,00", 0.0),
]  # fmt: skip


@pytest.mark.parametrize("text,reward", INT)
def test_int_reward(script, text, reward):
    assert script.int_reward_func([""], [answered(text)], ["24"]) == [reward]


LONG = "<reasoning>\n" + "One step after the other.\n" * 40 + "</reasoning>\n<answer>\n24\n</answer>"
ONE_LINE = "<reasoning>48/2 = 24</reasoning><answer>24</answer>"
BAD_FORM = {  # neither strict nor soft
    "empty": "",
    "no tags": "48/2 = 24",
    "only the answer": "<answer>\n24\n</answer>",
    "only the reasoning": "<reasoning>\n48/2 = 24\n</reasoning>",
    "answer first": "<answer>\n24\n</answer>\n<reasoning>\n48/2 = 24\n</reasoning>",
    "not closed": GOOD.replace("</answer>\n", ""),
    "reasoning not closed": GOOD.replace("</reasoning>\n", ""),
    "a tag doubled": GOOD.replace("<answer>\n", "<answer>\n<answer>\n"),
    "everything twice": GOOD + GOOD,
    "two answers": GOOD + "<answer>\n25\n</answer>\n",
    "nested": "<reasoning>\n48/2\n<answer>\n24\n</answer>\n</reasoning>\n",
    "text between": GOOD.replace("</reasoning>\n", "</reasoning>\nso\n"),
    "no reasoning": GOOD.replace("48/2 = 24", ""),
    "no answer": answered(""),
    "capitals": GOOD.title(),
    "reversed": "</answer>24<answer></reasoning>x<reasoning>",
}
LOOSE = {  # soft, not strict
    "one line": ONE_LINE,
    "one line, spaces": ONE_LINE.replace("><", ">  <"),
    "text after the end": GOOD + "The answer is 24.",
    "text before": "Sure!\n" + GOOD,
    "answer on one line": GOOD.replace("<answer>\n24\n</answer>", "<answer>24</answer>"),
    "reasoning on the tag's line": GOOD.replace("<reasoning>\n", "<reasoning> "),
    "closing tag after text": GOOD.replace("24\n</reasoning>", "24</reasoning>"),
    "both tags on a line": GOOD.replace("</reasoning>\n<answer>", "</reasoning> <answer>"),
    "end-of-turn token left": GOOD + "<|im_end|>",
}
STRICT = {
    "perfect": GOOD,
    "no final newline": GOOD.strip(),
    "many lines": LONG,
    "blank lines": GOOD.replace("\n", "\n\n"),
    "white space around": "\n  " + GOOD + "\n\n ",
    "spaces at line ends": GOOD.replace(">\n", ">  \n"),
    "indented": "  " + GOOD.replace("\n", "\n  "),
    "windows lines": GOOD.replace("\n", "\r\n"),
    "markup inside": GOOD.replace("48/2", "a < b, <b>48</b>/2"),
    "words in the answer": answered("24 apples"),
    "wrong number": answered("25"),
    "chinese": GOOD.replace("48/2 = 24", "一共24个"),
}


@pytest.mark.parametrize("name", [*BAD_FORM, *LOOSE, *STRICT])
def test_strict_format_reward(script, name):
    text = {**BAD_FORM, **LOOSE, **STRICT}[name]
    assert script.strict_format_reward_func([""], [text], ["24"]) == [0.5 * (name in STRICT)]


@pytest.mark.parametrize("name", [*BAD_FORM, *LOOSE, *STRICT])
def test_soft_format_reward(script, name):
    text = {**BAD_FORM, **LOOSE, **STRICT}[name]
    assert script.soft_format_reward_func([""], [text], ["24"]) == [0.5 * (name not in BAD_FORM)]


COUNTS = {
    "perfect": 0.5, "no final newline": 0.5, "many lines": 0.5, "windows lines": 0.5, "one line": 0.5, "text before": 0.5,
    "text after the end": 0.375, "end-of-turn token left": 0.375, "not closed": 0.375, "reasoning not closed": 0.375,
    "only the answer": 0.25, "only the reasoning": 0.25, "answer first": 0.125, "nested": 0.25, "a tag doubled": 0.375,
    "two answers": 0.25, "everything twice": 0.0, "no tags": 0.0, "empty": 0.0, "capitals": 0.0, "reversed": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("name,reward", COUNTS.items())
def test_xmlcount_reward(script, name, reward):
    text = {**BAD_FORM, **LOOSE, **STRICT}[name]
    assert script.xmlcount_reward_func([""], [text], ["24"]) == [reward]


def total(script, completion, right="24") -> float:
    names = ("correctness", "int", "strict_format", "soft_format", "xmlcount")
    rewards = [getattr(script, f"{name}_reward_func") for name in names]
    return sum(reward(prompts=[""], completions=[completion], answer=[right])[0] for reward in rewards)


def test_totals(script):
    assert total(script, GOOD) == 4.0
    assert total(script, GOOD.strip()) == 4.0  # the final newline is worth nothing
    assert total(script, LONG) == 4.0
    assert total(script, answered("25")) == 2.0  # the most that form alone can earn
    assert total(script, "<answer>24</answer>") > 2.0
    assert total(script, GOOD + "#### 24 \\boxed{24} 24") < 4.0
    assert total(script, GOOD + GOOD) == 0.0


def test_both_kinds_of_completion(script):
    texts = [text for text, _, _ in CORRECT]
    answers = [right for _, right, _ in CORRECT]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    for name in ("correctness", "int", "strict_format", "soft_format", "xmlcount"):
        reward = getattr(script, f"{name}_reward_func")
        plain = reward(prompts=texts, completions=texts, answer=answers, trainer_state=None, log_extra=None)
        assert plain == reward(prompts=texts, completions=chats, answer=answers) and len(plain) == len(texts)
    assert script.texts_of([[{"role": "assistant", "content": None}]]) == [""]


PIECES = ["<reasoning>", "</reasoning>", "<answer>", "</answer>", "\n", " ", "24", "25", "-3", "1,0", ".", "½", "²", "/", "x",
          "万", "%", "<", ">", "\r\n", "\t", "$", "٣", "e5", "=", "+"]  # fmt: skip
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=24).map("".join))


@given(TEXTS)
@settings(deadline=None, max_examples=400)
def test_rewards_stay_in_range(script, text):
    form = total(script, text) - script.correctness_reward_func([""], [text], ["24"])[0]
    assert 0 <= form <= 2.0  # so that no form earns more than a correct answer
    assert form / 0.125 == int(form / 0.125) and math.isfinite(total(script, text))
    strict, soft = (
        script.strict_format_reward_func([""], [text]),
        script.soft_format_reward_func([""], [text]),
    )
    assert strict <= soft
    assert total(script, text + "\n") == total(script, text)


@given(TEXTS, TEXTS)
@settings(deadline=None, max_examples=400)
def test_only_the_tagged_number_counts(script, before, after):
    """Whatever surrounds it, an answer is right only with one pair of tags whose content states the number."""
    text = f"{before}<answer>24</answer>{after}"
    alone = not re.search("</?answer>", before + after)
    assert script.correctness_reward_func([""], [text], ["24"]) == [2.0 * alone]
    assert script.correctness_reward_func([""], [text], ["25"]) == [0.0]


@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(["{}", "{:,}", "${:,}", "{}.0", "{:,}.00", " {} ", "{}%", "{} pens"]),
)
def test_every_way_to_write_a_number(script, number, form):
    text = form.format(number)
    assert script.number_of(text) == number
    assert script.correctness_reward_func([""], [answered(text)], [str(number)]) == [2.0]
    assert script.correctness_reward_func([""], [answered(text)], [str(number + 1)]) == [0.0]
    assert script.int_reward_func([""], [answered(text)]) == [0.5 * ("pens" not in form)]


@given(st.text(alphabet="0123456789.,/-+$% ²½e万", max_size=30))
def test_number_of_never_fails(script, text):
    value = script.number_of(text)
    assert value is None or isinstance(value, Fraction)


@pytest.mark.parametrize(
    "piece", ["<answer>", "<reasoning>\n", " ", "\n", "1", "1,000", "-", "1/", "</answer> ", ". ", "\t\n"]
)
def test_rewards_are_quick(script, piece):
    """A degenerate model repeats itself: no pattern may take more than linear time on that."""
    begin = time.process_time()
    for text in (
        piece * 20_000,
        answered(piece * 20_000),
        "<reasoning>" + piece * 20_000,
        "<answer>" + piece * 20_000,
    ):
        total(script, text)
    assert time.process_time() - begin < 4


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value_of(expression: str) -> Fraction:
    """Return the exact value of +, -, *, / and brackets over decimal numbers; "20%" is a fifth."""

    def walk(node):
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -walk(node.operand)
        return Fraction(ast.get_source_segment(text, node))

    text = re.sub(r"([\d.]+)%", r"(\1/100)", expression)
    return walk(ast.parse(text, mode="eval").body)


def test_value_of_is_no_rubber_stamp():
    assert value_of("48/2") == 24 and value_of("20%*50") == 10 and value_of("-(3-1.5)*4") == -6
    with pytest.raises((SyntaxError, KeyError, ValueError, TypeError)):
        value_of("2**3")


def mistakes(row: dict) -> list[str]:
    """Return what is wrong with a row: a mark that is not true, a result not repeated after it, another end."""
    steps, _, end = row["answer"].rpartition("\n#### ")
    marks = re.findall(r"<<([^<>=]+)=([^<>=]+)>>(-?[\d.]*\d)?", steps)
    found = [f"{left} is not {right}" for left, right, _ in marks if value_of(left) != value_of(right)]
    found += [f"{right} is followed by {said}" for _, right, said in marks if right != said]
    if len(marks) != steps.count("<<") or not marks:
        found.append("a mark that cannot be read, or none")
    elif not re.fullmatch(r"-?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?", end):
        found.append(f"#### {end} is no number")
    elif value_of(marks[-1][1]) != value_of(end.replace(",", "")):
        found.append(f"{end} is not the last result, {marks[-1][1]}")
    return found


def test_mistakes_are_found():
    right = {"question": "?", "answer": "So 48/2 = <<48/2=24>>24.\n#### 24"}
    assert mistakes(right) == []
    for old, new in (
        ("=24>>", "=25>>"),
        (">>24", ">>25"),
        ("#### 24", "#### 25"),
        ("<<48/2=24>>", "<<48/2>>"),
        ("#### 24", "#### x"),
    ):
        assert mistakes({**right, "answer": right["answer"].replace(old, new)}), (old, new)


@pytest.fixture(scope="module")
def rows():
    return [
        json.loads(line)
        for line in (ROOT / "data" / "r1" / "word_problems.jsonl").read_text(encoding="utf-8").splitlines()
    ]


@pytest.mark.parametrize("name", ["word_problems", "sums"])
def test_arithmetic_of_the_data(name):
    text = (ROOT / "data" / "r1" / f"{name}.jsonl").read_text(encoding="utf-8")
    wrong = {row["question"]: mistakes(row) for row in map(json.loads, text.splitlines()) if mistakes(row)}
    assert wrong == {}


def numbers_in(text: str) -> set[Fraction]:
    return {Fraction(number) for number in re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))}


def test_every_operand_has_a_source(rows):
    """What a step computes with stands in the question or is an earlier result; units (60, 100 ...) are known."""
    known = numbers_in("1 2 3 4 7 10 12 24 30 50 52 60 100 360 365 1000 3600")
    words = dict(zip("two three four five six seven eight nine ninth ten eleven twelve dozen half third quarter".split(),
                     (2, 3, 4, 5, 6, 7, 8, 9, 9, 10, 11, 12, 12, 2, 3, 4)))  # fmt: skip
    words |= {"fifth": 5, "sixth": 6, "tenth": 10} | dict(
        zip("一两二三四五六七八九十半", (1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 2))
    )
    strange = {}
    for row in rows:
        question = row["question"].lower()
        given = known | numbers_in(question) | {number for word, number in words.items() if word in question}
        for left, right in re.findall(r"<<([^<>=]+)=([^<>=]+)>>", row["answer"]):
            if new := numbers_in(left) - given:
                strange[row["question"]] = (left, new)
            given |= numbers_in(right)
    assert strange == {}


def test_data_is_what_it_says(script, rows):
    steps = [row["answer"].count("<<") for row in rows]
    ends = [script.extract_hash_answer(row["answer"]) for row in rows]
    chinese = sum(bool(re.search("[\u4e00-\u9fff]", row["question"])) for row in rows)
    assert len(rows) >= 400 and all(row.keys() == {"question", "answer"} for row in rows)
    assert min(steps) >= 2 and max(steps) == 8 and sum(count >= 4 for count in steps) >= len(rows) / 5
    assert sum("." in end for end in ends) >= 20 and sum("," in end for end in ends) >= 10
    assert sum(end.startswith("-") for end in ends) >= 8 and 0.08 <= chinese / len(rows) <= 0.15
    assert (
        sum("%" in row["question"] for row in rows) >= 30
        and sum("$" in row["question"] for row in rows) >= 60
    )
    assert all(script.number_of(end) is not None for end in ends)


def test_problems_are_no_template(rows):
    """With their numbers left out, no two questions share half of their pieces of five words."""
    pieces = []
    for row in rows:
        words = re.findall(r"[a-z]+|[\u4e00-\u9fff]", re.sub(r"\d+", "", row["question"].lower()))
        pieces.append({tuple(words[i : i + 5]) for i in range(len(words) - 4)})
    alike = [
        (rows[a]["question"], rows[b]["question"])
        for a in range(len(rows))
        for b in range(a)
        if len(pieces[a] & pieces[b]) > 0.5 * min(len(pieces[a]), len(pieces[b]))
    ]
    assert alike == []


def metrics_of(output) -> dict:
    return json.loads((output / "metrics.json").read_text(encoding="utf-8"))


def test_rehearsal_improves(rehearsal):
    run = rehearsal(SCRIPT)
    metrics = metrics_of(run.output)
    before, after, train = metrics["before"], metrics["after"], metrics["train"]
    assert before.keys() == after.keys() >= {"accuracy", "format_rate", "ended_by_itself"}
    right = [
        float(value) / 2 for value in re.findall(r"correctness_reward_func/mean': '([\d.]+)'", run.stdout)
    ]
    assert len(right) == train["steps"] and 0.02 < sum(right[:5]) / 5 < 0.5, "samples are right now and then"
    assert train["reward_last_10"] - train["reward_first_10"] >= 0.5
    assert after["accuracy"] - before["accuracy"] >= 0.10 and after["format_rate"] > before["format_rate"]
    change = metrics["difference"]["accuracy"]
    assert change["value"] == pytest.approx(after["accuracy"] - before["accuracy"])
    assert 0 < change["low"] <= change["value"] <= change["high"] and change["p"] < 0.05


def test_rehearsal_leaves_what_it_says(rehearsal):
    run = rehearsal(SCRIPT)
    names = {"lora", "answers.jsonl", "metrics.json", "report.md", "reward.png"}
    assert {path.name for path in run.output.iterdir()} == names
    assert load_file(run.output / "lora" / "adapter_model.safetensors")
    assert (run.output / "reward.png").stat().st_size > 20_000
    report = (run.output / "report.md").read_text(encoding="utf-8")
    assert "of no use to anyone" in report and "| accuracy " in report and report.count("After:") == 3
    assert "| accuracy " in run.stdout and "Samples come from the model itself" in run.stdout
    answers = [
        json.loads(line) for line in (run.output / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(answers) == 100 and answers[0]["prompt"][-1]["role"] == "user" and answers[0]["reference"]
    assert {"before", "after", "before_ended", "after_ended"} <= answers[0].keys()


def test_batch_must_hold_whole_groups(run_script):
    run = run_script(SCRIPT, NUM_GENERATIONS=5)
    assert run.status == 1 and "multiple of NUM_GENERATIONS" in run.stderr
    assert "held out" not in run.stdout, "it loads data or a model before it complains"


SMALL = {"BATCH_SIZE": 6, "NUM_GENERATIONS": 6, "MAX_STEPS": 10, "EVAL_ROWS": 4, "NEW_TOKENS": 16}


def test_probe_votes_and_a_kill(run_script, tmp_path):
    """Killed after a checkpoint, the run goes on; the probe leaves problems that go right now and then."""
    output, few = tmp_path / "output", tmp_path / "few.jsonl"
    lines = (ROOT / "data" / "r1" / "sums.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    few.write_text("".join(lines[:40]), encoding="utf-8")
    given = {"environment": {"DATA": str(few)}}
    settings = SMALL | {"PROBE": 6, "VOTES": 3, "NEW_TOKENS": 40}
    kill_in_training(SCRIPT, output, "checkpoints-*/checkpoint-3/trainer_state.json", **given, **settings)
    run = run_script(SCRIPT, output=output, **given, **settings)
    assert run.status == 0, run.stderr[-2000:]
    assert re.search(r"Continuing from .*checkpoint-\d", run.stdout)
    assert metrics_of(output)["train"]["steps"] == 10 and not list(output.glob("checkpoints-*"))
    always, whole, never, rest = map(
        int, re.findall(r"solves (\d+) of (\d+) .* (\d+) never;\n.* (\d+) teach", run.stdout)[0]
    )
    assert whole == 32 and always + never + rest == whole and 0 < rest < whole
    assert "accuracy_of_votes" in metrics_of(output)["after"]


@pytest.mark.parametrize(
    "text,words",
    [
        ('{"question": "a"}\n{"question": "b"}\n', "need question and answer"),
        ('{"question": "1+1?", "answer": "2"}\n{"question": "2+2?", "answer": "4"}\n', "####"),
        ('{"question": "一加一等于几", "answer": "#### 2"}\n' * 9, "cannot be read"),  # in GBK
        ('{"question": "1+1?", "answer": "#### 2"}\n{"question": \n', "cannot be read"),
    ],
)
def test_unusable_data_is_named(run_script, tmp_path, text, words):
    path = tmp_path / "problems.jsonl"
    path.write_text(text, encoding="gbk")
    run = run_script(SCRIPT, environment={"DATA": str(path)})
    assert run.status == 1 and words in run.stderr and "problems.jsonl" in run.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def judge(functions):
    return functions("data/r1/judge.py")


def test_judge_scores_anybodys_answers(judge):
    answers = pd.DataFrame({"reference": ["24", "1,000", "3"], "after": [GOOD, answered("1000"), "3"]})
    answers["after_ended"] = [True, True, False]
    answers["after_votes"] = [
        [(GOOD, True)] * 2 + [(answered("25"), True)],
        [("", False)] * 3,
        [(answered("3"), True)] * 3,
    ]
    scores = judge.score(answers, "after")
    assert scores["accuracy"] == [1, 1, 0] and scores["format_rate"] == [1, 1, 0]
    assert scores["ended_by_itself"] == [1, 1, 0] and scores["accuracy_of_votes"] == [1, 0, 1]


def test_a_difference_of_nothing_is_found_by_chance_only(judge):
    """Of a thousand pairs of runs that do not differ one in twenty seems to; the interval holds 0 in 19 of 20."""
    rng = np.random.default_rng(5)
    changes = [judge.compare(*(rng.random((2, 80)) < 0.6).astype(float).tolist()) for _ in range(500)]
    changes += [judge.compare(*rng.normal(2, 1, (2, 80)).tolist()) for _ in range(500)]
    assert 0.04 <= np.mean([change["p"] < 0.05 for change in changes]) <= 0.06
    assert 0.93 <= np.mean([change["low"] <= 0 <= change["high"] for change in changes]) <= 0.97


def test_the_smallest_difference_is_seen_four_times_in_five(judge):
    rng = np.random.default_rng(1)
    smallest = judge.compare([0.0] * 2000, rng.normal(0, 1, 2000).tolist())["smallest"] * 20**0.5
    seen = [judge.compare([0.0] * 100, rng.normal(smallest, 1, 100).tolist())["p"] < 0.05 for _ in range(100)]
    assert 0.7 <= np.mean(seen) <= 0.9


def test_what_so_few_rows_cannot_show(judge):
    assert judge.compare([0.0], [1.0]) == {"value": 1.0, "low": 1.0, "high": 1.0, "p": None, "smallest": None}
    same = judge.compare([1.0] * 5, [1.0] * 5)
    assert same["value"] == 0 and same["p"] == 1 and same["smallest"] is None
    assert judge.compare([0.0] * 40, [1.0] * 40)["p"] < 0.001


@given(st.text(max_size=200), st.integers(0, 9))
def test_a_text_cannot_leave_its_fence(judge, text, ticks):
    block = judge.fenced(text + "`" * ticks)
    first, *inside, last, end = block.split("\n")
    assert first == last and set(first) == {"`"} and end == "" and len(first) >= 3
    assert not [
        line
        for line in inside
        if line.strip() and set(line.strip()) == {"`"} and len(line.strip()) >= len(first)
    ]
    assert not re.search("[\x00-\x08\x1b\ud800-\udfff]", block)
