"""The data, the split and the judge of sft_alpaca.py; its runs are in test_runs.py."""

import http.server
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from datasets import Dataset
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

TINY = ROOT / "data" / "tiny-qwen2.5"


@pytest.fixture(scope="module")
def alpaca(functions):
    """The script's functions with the rehearsal's tokenizer and limit, which they read as globals."""
    module = functions("sft_alpaca.py")
    module.tokenizer, module.MAX_LENGTH = AutoTokenizer.from_pretrained(TINY), 256
    return module


@pytest.fixture(scope="module")
def judge(functions):
    return functions("data/alpaca/judge.py")


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("given_input, question", [("3, 1", "Sort.\n3, 1"), ("", "Sort."), (None, "Sort.")])
def test_a_row_is_a_prompt_and_a_completion(alpaca, given_input, question):
    made = alpaca.to_prompt_completion({"instruction": "Sort.", "input": given_input, "output": "1, 3"})
    assert made["completion"] == [{"role": "assistant", "content": "1, 3"}]
    assert [turn["role"] for turn in made["prompt"]] == ["system", "user"]
    assert made["prompt"][1]["content"] == question


def test_system_and_history_are_used(alpaca):
    row = {"instruction": "And in winter?", "input": "", "output": "Wool.", "system": "You are a tailor."}
    made = alpaca.to_prompt_completion(row | {"history": [["What to wear in summer?", "Linen."]]})
    assert made["prompt"] == [
        {"role": "system", "content": "You are a tailor."},
        {"role": "user", "content": "What to wear in summer?"},
        {"role": "assistant", "content": "Linen."},
        {"role": "user", "content": "And in winter?"},
    ]


@given(
    st.lists(st.text(max_size=600), min_size=1, max_size=12),
    st.lists(st.text(max_size=600), min_size=1, max_size=12),
)
@example(["a"], ["b " * 400])
def test_a_micro_batch_never_holds_more_than_its_budget(alpaca, questions, answers):
    """At most BATCH_SIZE x MAX_LENGTH tokens, padding included, and no row is cut: too long ones are left out."""
    rows = [{"instruction": question, "output": answer} for question, answer in zip(questions, answers)]
    tokens = []
    for row in filter(alpaca.usable, rows):
        chat = alpaca.to_prompt_completion(row)
        tokens.append(
            alpaca.tokenizer.apply_chat_template(chat["prompt"] + chat["completion"], return_dict=False)
        )
    collator = DataCollatorForLanguageModeling(alpaca.tokenizer.pad_token_id)
    for start in range(0, len(tokens), 4):
        batch = collator([{"input_ids": ids} for ids in tokens[start : start + 4]])
        assert batch["input_ids"].numel() <= 4 * alpaca.MAX_LENGTH
        ends = (batch["input_ids"] == alpaca.tokenizer.eos_token_id).sum(dim=1)
        assert (ends >= 3).all(), "system, question and answer each end in it"


BROKEN = {
    "cut.jsonl": b'{"instruction": "a", "output": "b"}\n{"instruction": "a", "outp\n',
    "empty.jsonl": b"",
    "list.json": b"[]",
    "object.json": b"{}",
    "number.json": b"3",
    "cut emoji.jsonl": b'{"instruction": "a\\ud83d", "output": "b"}\n',
    "deep.json": b'{"instruction": "a", "output": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    "gbk.jsonl": '{"instruction": "甲乙丙", "output": "丁戊己"}\n'.encode("gbk"),
    "not there.jsonl": None,
}


@pytest.mark.parametrize("script", ["sft_alpaca.py", "sft_gongwen.py"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_one_line(functions, tmp_path, script, name):
    module = functions(script)
    module.tokenizer, module.MAX_LENGTH = AutoTokenizer.from_pretrained(TINY), 256
    if BROKEN[name] is not None:
        (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(SystemExit, match=re.escape(name)):
        module.read_rows(str(tmp_path / name))


@pytest.mark.parametrize("meta", [None, "train", ["train"], {}, {"split": None}, 3])
def test_odd_meta_is_no_split(alpaca, meta):
    row = {"instruction": "a", "output": "b"}
    assert alpaca.held_out(row | {"meta": meta}) == alpaca.held_out(row)
    assert alpaca.held_out(row | {"meta": {"split": "test"}}) and not alpaca.held_out(
        row | {"meta": {"split": "train"}}
    )


def test_the_model_sees_its_chat_template_and_not_the_alpaca_prompt(alpaca):
    made = alpaca.to_prompt_completion({"instruction": "Sort.", "input": "", "output": "1"})
    text = alpaca.tokenizer.apply_chat_template(made["prompt"] + made["completion"], tokenize=False)
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_start|>assistant\n1<|im_end|>\n")
    assert "###" not in text


@pytest.mark.parametrize(
    "row, fit",
    [
        ({"instruction": "Sort.", "output": "1"}, True),
        ({"instruction": "Sort.", "output": "1", "input": None, "history": None}, True),
        ({"instruction": "Sort.", "output": None}, False),
        ({"instruction": "Sort.", "output": " \n"}, False),
        ({"instruction": "", "output": "1"}, False),
        ({"instruction": "Sort.", "output": ["1", "2"]}, False),
        ({"instruction": "Sort.", "output": 5}, False),
        ({"prompt": "Sort.", "response": "1"}, False),
        ({"instruction": "Sort.", "output": "word " * 200}, True),
        ({"instruction": "Sort.", "output": "word " * 300}, False),
        ({"instruction": "Sort " * 300, "output": "1"}, False),
    ],
)
def test_what_is_usable(alpaca, row, fit):
    assert alpaca.usable(row) == fit


def test_rows_of_a_file_are_counted(alpaca, tmp_path, capsys):
    rows = [{"instruction": f"Add {i}.", "input": "", "output": str(i)} for i in range(20)]
    rows += [
        {"instruction": "Write C++.", "output": "a"},
        {"instruction": "Write C#.", "output": "b"},
        {"output": "c"},
    ]
    read = alpaca.read_rows(write(tmp_path / "rows.jsonl", rows))
    assert sorted(row["instruction"] for row in read) == sorted(row["instruction"] for row in rows[:22])
    assert [row["instruction"] for row in read] != [row["instruction"] for row in rows[:22]], "shuffled"
    assert "22 of 23 rows are complete" in capsys.readouterr().out


def test_a_name_is_a_data_set_of_the_hub(alpaca, monkeypatch):
    asked = []

    def load(name, **options):
        asked.append((name, options))
        return {"train": Dataset.from_list([{"instruction": "a?", "input": "", "output": "b"}])}

    monkeypatch.setattr(alpaca, "load_dataset", load)
    assert alpaca.read_rows("yahma/alpaca-cleaned")[0]["output"] == "b"
    assert asked == [("yahma/alpaca-cleaned", {})]


@given(st.lists(st.sampled_from("abcdefghijkl"), min_size=3, max_size=60))
def test_no_instruction_is_on_both_sides(alpaca, names):
    rows = [{"instruction": f"Do {name}!", "input": str(i), "output": "x"} for i, name in enumerate(names)]
    sides = {}
    for row in rows:
        assert sides.setdefault(row["instruction"], alpaca.held_out(row)) == alpaca.held_out(row)


def test_a_share_of_the_instructions_and_of_the_topics_is_held_out(alpaca):
    held = [alpaca.held_out({"instruction": f"question {i}"}) for i in range(4000)]
    assert 0.08 < sum(held) / 4000 < 0.12
    by_topic = {alpaca.held_out({"instruction": str(i), "topic": "one topic"}) for i in range(50)}
    assert len(by_topic) == 1


def test_a_split_in_the_rows_is_honoured(alpaca):
    splits = ["train", "test", "train", "val", "train"]
    rows = [{"instruction": "same", "meta": {"split": split}} for split in splits]
    assert [alpaca.held_out(row) for row in rows] == [False, True, False, True, False]


def test_the_shipped_rows(alpaca):
    raw = json.loads((ROOT / "data/alpaca/instructions.json").read_text(encoding="utf-8"))
    assert len(raw) >= 300 and len({(row["instruction"], row["input"]) for row in raw}) == len(raw)
    texts = [row["output"] + row["instruction"] for row in raw]
    chinese = sum(any("\u4e00" <= letter <= "\u9fff" for letter in text) for text in texts)
    assert 0.4 < chinese / len(raw) < 0.65
    assert 0.25 < sum(bool(row["input"]) for row in raw) / len(raw) < 0.45
    assert len({row["kind"] for row in raw}) >= 10
    assert sum(not alpaca.usable(row) for row in raw) < 0.15 * len(raw)
    held = [row for row in raw if alpaca.held_out(row)]
    known = {row["output"] for row in raw if not alpaca.held_out(row)}
    assert len(held) >= 20 and not [row for row in held if len(row["output"]) > 40 and row["output"] in known]


def test_the_general_rows_are_those_of_the_corpus(functions):
    rows = [
        json.loads(line)
        for line in (ROOT / "data/general/rows.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    build = functions("data/general/build.py")
    found = [
        row
        for name in build.FILES
        for row in build.general_rows((build.CORPUS / name).read_text(encoding="utf-8"))
    ]
    assert len(rows) == 2 * build.ROWS and all(row in found for row in rows)
    assert len({row["instruction"] for row in rows}) > 0.95 * len(rows)


def test_answers_are_compared_with_the_references(judge):
    wanted = ["天气晴朗，适合出行。", "Paris is the capital.", "x = 1"]
    answers = pd.DataFrame({"reference": wanted, "after": ["天气晴朗，适合出行。", "", "天气"]})
    answers["after_ended"] = [True, False, True]
    scores = judge.score(answers, "after")
    assert scores["chrf"] == pytest.approx([100, 0, 0], abs=1e-6) and scores["ended_by_itself"] == [1, 0, 1]
    near, far = judge.score(
        pd.DataFrame({"reference": wanted[:1] * 2, "after": ["天气晴好，适合出行。", "适合出行。"]}), "after"
    )["chrf"]
    assert 100 > near > far > 0


def run_judge(folder) -> str:
    command = [sys.executable, "data/alpaca/judge.py", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_judge_as_a_program(tmp_path):
    """Model text cannot break out of the report; an exported model's answers are a third column."""
    evil = "```\n</details><script>alert(1)</script>\n# Heading\n![x](http://example.com/x.png)\x1b[31m"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{i}?"}],
            "reference": "007",
            "before": "7",
            "after": evil if i else "007",
        }
        | {"before_ended": True, "after_ended": True, "exported": "007"}
        for i in range(6)
    ]
    write(tmp_path / "answers.jsonl", rows)
    losses = {"before": {"loss": [2.0, 3, 4, 2, 3, 4]}, "after": {"loss": [1.5, 2, 3, 1, 2, 3]}}
    metrics = {"model": "mine", "losses": losses, "train": {"steps": 1}, "versions": {}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    printed = run_judge(tmp_path)
    done = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert "| loss " in printed and done["before"]["loss"] == 3 and done["difference"]["loss"]["value"] < -0.5
    assert done["exported"]["chrf"] == pytest.approx(100) and "exported" in printed
    report = Path(tmp_path, "report.md").read_text(encoding="utf-8")
    assert "\x1b" not in report and "no use to anyone" not in report
    outside, inside = [], ""
    for line in report.splitlines():
        if not inside and line.startswith("```"):
            inside = line
        elif inside and line == inside:
            inside = ""
        elif not inside:
            outside.append(line)
    assert not inside and not [line for line in outside if "script" in line or "example.com" in line]


def test_judge_names_a_folder_that_holds_no_run(tmp_path):
    assert "holds no finished run" in run_judge(tmp_path)
    (tmp_path / "answers.jsonl").write_text("no json", encoding="utf-8")
    assert "holds no finished run" in run_judge(tmp_path)


class Server(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible server that repeats the question, or breaks where it is asked to."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = asked["messages"][-1]["content"]
        choice = {"message": {"content": f"{question} {asked['temperature']}"}, "finish_reason": "stop"}
        body = b"no json" if question == "break" else json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + 1000 * (question == "cut")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    "program", ["data/alpaca/judge.py", "data/r1/judge.py", "data/medical/judge.py", "data/gongwen/judge.py"]
)
def test_a_judge_asks_a_server(functions, program):
    judge = functions(program)
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        judge.ENDPOINT = f"http://127.0.0.1:{server.server_port}/v1/"
        assert judge.ask([{"role": "user", "content": "Two?"}]) == ("Two? 0", True)
        for question in ("break", "cut"):
            with pytest.raises(ValueError, match="gives no answer"):
                judge.ask([{"role": "user", "content": question}])
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(ValueError, match="start the server"):
        judge.ask([{"role": "user", "content": "Two?"}])
    judge.ENDPOINT = ""


@pytest.mark.parametrize("room", ["alpaca", "r1"])
def test_a_server_that_is_not_there_is_one_line(tmp_path, room):
    """What was scored before stays as it is."""
    prompt = [{"role": "user", "content": "1 + 1?"}]
    row = {"prompt": prompt, "reference": "2", "before": "3", "after": "2"}
    row |= {"before_ended": True, "after_ended": True}
    write(tmp_path / "answers.jsonl", [row] * 3)
    (tmp_path / "metrics.json").write_text('{"model": "m", "losses": {}}', encoding="utf-8")
    source = (ROOT / "data" / room / "judge.py").read_text(encoding="utf-8")
    assert source.count('\nENDPOINT = ""') == 1
    program = tmp_path / "judge.py"
    program.write_text(
        source.replace('\nENDPOINT = ""', '\nENDPOINT = "http://127.0.0.1:9/v1"'), encoding="utf-8"
    )
    done = subprocess.run([sys.executable, str(program), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "http://127.0.0.1:9/v1 gives no answer" in done.stderr and "start the server" in done.stderr
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"model": "m", "losses": {}}
