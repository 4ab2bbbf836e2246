"""The data, the split and the scores of sft_alpaca.py; its runs are in test_runs.py and test_exports.py."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

TINY = ROOT / "data" / "tiny-qwen2.5"


@pytest.fixture(scope="module")
def alpaca(functions):
    """The script's functions with the rehearsal's tokenizer and limit, which they read as globals."""
    module = functions("sft_alpaca.py")
    module.tokenizer, module.MAX_LENGTH = AutoTokenizer.from_pretrained(TINY), 256
    return module


def write(path, rows, encoding="utf-8", lines=False):
    text = (
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        if lines
        else json.dumps(rows, ensure_ascii=False)
    )
    path.write_bytes(text.encode(encoding))
    return str(path)


@pytest.mark.parametrize("given_input, question", [("3, 1", "Sort.\n3, 1"), ("", "Sort."), (None, "Sort.")])
def test_a_row_is_a_prompt_and_a_completion(alpaca, given_input, question):
    made = alpaca.to_prompt_completion({"instruction": "Sort.", "input": given_input, "output": "1, 3"})
    assert made["completion"] == [{"role": "assistant", "content": "1, 3"}]
    assert [turn["role"] for turn in made["prompt"]] == ["system", "user"]
    assert made["prompt"][1]["content"] == question


def test_the_model_sees_its_chat_template_and_not_the_alpaca_prompt(alpaca):
    made = alpaca.to_prompt_completion({"instruction": "Sort.", "input": "", "output": "1"})
    text = alpaca.tokenizer.apply_chat_template(made["prompt"] + made["completion"], tokenize=False)
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_start|>assistant\n1<|im_end|>\n")
    assert "###" not in text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("lines", [False, True])
def test_files_in_every_encoding_are_read(alpaca, tmp_path, encoding, lines):
    rows = [{"instruction": "改写这句话。", "input": "天气好", "output": "天气晴朗。"}]
    read = alpaca.read_instructions(write(tmp_path / "rows.json", rows, encoding, lines))
    assert [{key: row[key] for key in rows[0]} for row in read] == rows


def test_unusable_rows_are_left_out_by_number(alpaca, tmp_path, capsys):
    rows = [
        {"instruction": "Add 2 and 3.", "output": 5},
        {"instruction": "No answer.", "output": None},
        {"instruction": " ", "output": " "},
        {"instruction": "add 2 and 3", "input": "", "output": "five"},
        {"instruction": "Add 2 and 3.", "input": "in words", "output": "five"},
        "not a row",
        {"instruction": "Two?", "output": 2.5},
    ]
    read = alpaca.read_instructions(write(tmp_path / "rows.json", rows))
    assert [(row["input"], row["output"]) for row in read] == [("", "5"), ("in words", "five"), ("", "2.5")]
    said = capsys.readouterr().out
    assert [f"row {number}:" in said for number in range(1, 8)] == [
        False,
        True,
        True,
        True,
        False,
        True,
        False,
    ]
    assert "row 2: no output" in said and "row 3: no instruction and no output" in said
    assert "row 4: the question of an earlier row again" in said


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"instruction": "a", "output": "b"}\n{"instruction": "a"', "line 2: not JSON"),
        ("[]", "no usable row"),
        ('[{"prompt": "a", "response": "b"}]', "no usable row"),
        ("", "no usable row"),
    ],
)
def test_a_bad_file_is_named(alpaca, tmp_path, content, message):
    path = tmp_path / "mine.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        alpaca.read_instructions(str(path))
    assert "mine.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_a_misspelt_file_is_not_looked_for_on_the_hub(alpaca, monkeypatch):
    monkeypatch.setattr(alpaca, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(OSError, match="data/alpcaa.json"):
        alpaca.read_instructions("data/alpcaa.json")


def test_a_name_is_a_data_set_of_the_hub(alpaca, monkeypatch):
    asked = []

    def load(name, split):
        asked.append((name, split))
        return Dataset.from_list([{"instruction": "a?", "input": "", "output": "b"}])

    monkeypatch.setattr(alpaca, "load_dataset", load)
    assert alpaca.read_instructions("yahma/alpaca-cleaned")[0]["output"] == "b"
    assert asked == [("yahma/alpaca-cleaned", "train")]


def test_what_the_hub_says_becomes_one_line(alpaca, monkeypatch):
    def load(name, split):
        raise ConnectionError("Couldn't reach it\nTraceback and so on")

    monkeypatch.setattr(alpaca, "load_dataset", load)
    with pytest.raises(ValueError) as error:
        alpaca.read_instructions("someone/something")
    assert "someone/something" in str(error.value) and "Couldn't reach it" in str(error.value)
    assert "\n" not in str(error.value)


@given(st.lists(st.sampled_from("abcdefghijkl"), min_size=3, max_size=60), st.integers(0, 99))
def test_no_instruction_is_on_both_sides(alpaca, names, seed):
    rows = [{"instruction": f"Do {name}!", "input": str(i), "output": "x"} for i, name in enumerate(names)]
    train, held = alpaca.hold_out(rows, 0.25, seed)
    assert sorted(row["input"] for row in train + held) == sorted(row["input"] for row in rows)
    assert not {row["instruction"] for row in train} & {row["instruction"] for row in held}
    assert len({row["instruction"] for row in held}) == math.ceil(0.25 * len(set(names)))
    assert alpaca.hold_out(rows, 0.25, seed) == (train, held)


def test_the_same_question_in_other_letters_stays_on_one_side(alpaca):
    rows = [
        {"instruction": text, "output": "x"} for text in ["Sort it.", "sort it", "SORT: it!", "b", "c", "d"]
    ]
    for seed in range(20):
        train, held = alpaca.hold_out(rows, 0.3, seed)
        sides = [{row["instruction"].lower()[:4] for row in side} for side in (train, held)]
        assert ("sort" in sides[0]) != ("sort" in sides[1])


def test_a_split_in_the_rows_is_honoured(alpaca):
    splits = ["train", "test", "train", "val", "train"]
    rows = [
        {"instruction": "same", "output": str(i), "meta": {"split": split}} for i, split in enumerate(splits)
    ]
    train, held = alpaca.hold_out(rows, 0.9, 0)
    assert sorted(row["output"] for row in train) == ["0", "2", "4"]
    assert sorted(row["output"] for row in held) == ["1", "3"]


def test_the_legal_rows_keep_their_articles_apart(alpaca, tmp_path):
    built = tmp_path / "legal.json"
    environment = {**os.environ, "OUTPUT": str(built)}
    subprocess.run(
        [sys.executable, "data/dataset_legal.py"], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    rows = alpaca.read_instructions(str(built))
    train, held = alpaca.hold_out(rows, 0.1, 3407)
    cited = [{article for row in side for article in row["meta"]["cited"]} for side in (train, held)]
    assert len(train) > 100 and len(held) > 10 and not cited[0] & cited[1]
    assert {row["meta"]["split"] for row in train} == {"train"} and {
        row["meta"]["split"] for row in held
    } == {"test"}


def test_plain_text_is_cut_and_nothing_is_lost(alpaca, tmp_path):
    texts = ["第一条　为了保护公众健康，制定本条例。\n" * 40, "Air is checked twice a year. " * 60]
    (tmp_path / "a.txt").write_bytes(texts[0].encode("gb18030"))
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "b.txt").write_text(texts[1], encoding="utf-8")
    (tmp_path / "c.csv").write_text("not text", encoding="utf-8")
    blocks = alpaca.read_blocks(str(tmp_path))
    assert {len(block["input_ids"]) for block in blocks[:-1]} == {256} and 2 <= len(
        blocks[-1]["input_ids"]
    ) <= 256
    text = alpaca.tokenizer.decode([token for block in blocks for token in block["input_ids"]])
    assert text == texts[0] + "<|endoftext|>" + texts[1] + "<|endoftext|>"
    assert sum(map(len, alpaca.hold_out(blocks, 0.1, 0))) == len(blocks)


def test_a_last_block_has_something_to_predict(alpaca, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(" a" * 256, encoding="utf-8")  # with the end of text 257 tokens, one more than a block
    assert len(alpaca.tokenizer(" a" * 256).input_ids) == 256
    assert [len(block["input_ids"]) for block in alpaca.read_blocks(str(path))] == [256]


def test_a_missing_text_is_an_error_that_the_data_cell_expects(alpaca):
    with pytest.raises(OSError, match="nowhere.txt"):
        alpaca.read_blocks("nowhere.txt")


def test_loss_is_that_of_a_token_and_its_interval_that_of_a_ratio(alpaca):
    rng = np.random.default_rng(1)
    tokens = rng.integers(2, 200, 60)
    nats = tokens * rng.normal(3, 0.5, 60)
    scores = alpaca.score_losses(list(nats), list(tokens))
    mean, low, high = alpaca.mean_and_interval(scores["loss"])
    assert mean == pytest.approx(nats.sum() / tokens.sum())
    assert np.mean(scores["perplexity"]) == pytest.approx(math.exp(mean))
    picks = rng.integers(0, 60, (4000, 60))
    ratios = nats[picks].sum(1) / tokens[picks].sum(1)
    assert [low, high] == pytest.approx(np.percentile(ratios, [2.5, 97.5]), abs=0.03)
    assert high - low < 0.7 * (np.percentile((nats[picks] / tokens.mean()).mean(1), 97.5) - mean) * 2


def test_a_long_row_counts_by_its_tokens(alpaca):
    scores = alpaca.score_losses([1.0, 270.0], [1, 90])
    assert np.mean(scores["loss"]) == pytest.approx(271 / 91)


def test_answers_are_compared_with_the_wanted_ones(alpaca):
    wanted = ["天气晴朗，适合出行。", "Paris is the capital.", "x = 1"]
    scores = alpaca.compare_answers(["天气晴朗，适合出行。", "", "天气"], wanted, [True, False, True])
    assert scores["chrf"] == pytest.approx([100, 0, 0], abs=1e-6) and scores["ended_by_itself"] == [1, 0, 1]
    near, far = alpaca.compare_answers(["天气晴好，适合出行。", "适合出行。"], wanted[:1] * 2, [True, True])[
        "chrf"
    ]
    assert 100 > near > far > 0


def test_the_shipped_rows(alpaca):
    rows = alpaca.read_instructions("data/alpaca.json")
    raw = json.loads((ROOT / "data" / "alpaca.json").read_text(encoding="utf-8"))
    assert len(rows) == len(raw) >= 300, "a row of ours is unusable or asks the same twice"
    chinese = sum(
        any("\u4e00" <= letter <= "\u9fff" for letter in row["output"] + row["instruction"]) for row in rows
    )
    assert 0.4 < chinese / len(rows) < 0.65
    assert 0.25 < sum(bool(row["input"]) for row in rows) / len(rows) < 0.45
    assert len({row["kind"] for row in raw}) >= 10
    assert sum(not alpaca.fits(row) for row in rows) < 0.15 * len(rows)
    train, held = alpaca.hold_out(rows, alpaca.EVAL_SHARE, alpaca.SEED)
    answers = {row["output"] for row in train}
    assert len(held) >= 30 and not [
        row for row in held if len(row["output"]) > 40 and row["output"] in answers
    ]
