"""What holds for every official document that ships: nothing invented, nothing to paste, nothing twice."""

import json
import re
from collections import Counter

import pytest
from conftest import ROOT

PLACES = re.compile(r"20××年|〔20××〕|×号|×月|×人|×台|××|×元|×家|×个|×名")


@pytest.fixture(scope="module")
def judge(functions):
    return functions("data/gongwen/judge.py")


@pytest.fixture(scope="module")
def rows():
    return json.loads((ROOT / "data/gongwen/train.json").read_text(encoding="utf-8"))


def test_rows_are_what_the_readme_says(judge, rows):
    kinds = Counter(judge.kind_of_document(row["output"]) for row in rows)
    assert len(rows) >= 720 and len({row["topic"] for row in rows}) == 40 and len(kinds) >= 15
    assert {row["kind"] for row in rows} == {"draft", "placeholder", "rewrite", "correct", "refuse"}
    assert all(row["instruction"].strip() and row["input"].strip() and row["output"].strip() for row in rows)
    assert len({row["instruction"] + row["input"] for row in rows}) == len(rows)
    assert sum(1200 <= len(row["output"]) <= 3000 for row in rows) >= 60
    assert sum("（1）" in row["output"] for row in rows) >= 5
    assert sum(bool(re.match("特急|加急", row["output"])) for row in rows) >= 4
    assert sum("抄送" in row["output"] for row in rows) >= 10


def test_no_row_teaches_invention(judge, rows):
    """Every figure, date, number, organ and name of a document stands in its prompt or follows from it."""
    new = [row for row in rows if judge.invented(f"{row['instruction']}\n{row['input']}", row["output"])]
    assert len(new) <= 0.01 * len(rows)


def test_every_document_is_clean(judge, rows):
    assert [row["instruction"] for row in rows if judge.faults(row, row["output"])] == []


def test_what_is_not_given_is_left_open(rows):
    open_rows = [row for row in rows if row["kind"] == "placeholder"]
    assert len(open_rows) >= 40 and all(PLACES.search(row["output"]) for row in open_rows)


def test_facts_are_told_and_not_to_be_pasted(rows):
    """Of the segments of eight characters of all inputs at most 30% stand in the document word for word."""
    found = whole = 0
    for row in rows:
        segments = [row["input"][i : i + 8] for i in range(len(row["input"]) - 7)]
        found, whole = found + sum(part in row["output"] for part in segments), whole + len(segments)
    assert found <= 0.30 * whole


def test_documents_are_no_template(rows):
    """No two documents share more than a third of their 12-character pieces."""
    pieces = [{text[i : i + 12] for i in range(len(text) - 11)} for text in (row["output"] for row in rows)]
    holders = {}
    for i, own in enumerate(pieces):
        for piece in own:
            holders.setdefault(piece, []).append(i)
    shared = Counter()
    for found in holders.values():
        shared.update((a, b) for a in found for b in found if a < b)
    assert max(n / min(len(pieces[a]), len(pieces[b])) for (a, b), n in shared.items()) < 1 / 3


def test_held_out_topics_are_unknown(rows):
    """No topic is on both sides, and the tiny model was pretrained on none that is held out."""
    held = {row["topic"] for row in rows if row["meta"]["split"] == "test"}
    assert not held & {row["topic"] for row in rows if row["meta"]["split"] == "train"}
    source = (ROOT / "data/tiny-qwen2.5/build.py").read_text(encoding="utf-8")
    assert held == set(re.search('HELD_OUT = "([^"]+)"', source)[1].split())
    assert 0.08 <= sum(row["topic"] in held for row in rows) / len(rows) <= 0.16


def test_a_pasted_skeleton_is_never_clean(judge, rows):
    assert [
        row["instruction"]
        for row in rows
        if not judge.faults(row, judge.skeleton({**row, "reference": row["output"]}))
    ] == []
