"""What becomes of an adapter: merged for transformers, converted for llama.cpp, described for Ollama."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPT = "sft_alpaca.py"
TINY = "data/tiny-qwen2.5"
SOURCE = "llama-cpp-python==0.3.36"  # its source distribution holds llama.cpp's converter
QUESTIONS = [
    "感冒发烧怎么办？",
    "What is the capital of France?",
    "Give three tips for sleeping well.",
    "12 + 7 = ?",
]
SHORT = {"TRAIN": False, "EVAL_ROWS": 1, "NEW_TOKENS": 8}  # of a run that only exports

QUANTIZE = """#!/bin/sh
if test "$1" = --help; then echo usage: llama-quantize; exit; fi
exec {python} {folder}/convert_hf_to_gguf.py "$(dirname "$1")/../merged_16bit" --outfile "$2" --outtype q8_0
"""
CLIENT = """
import json, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.cpuparams.n_threads, params.warmup = sys.argv[1], 512, 1, False
server = xllamacpp.Server(params)
for question in json.loads(sys.argv[2]):
    turns = [{"role": "system", "content": sys.argv[3]}, {"role": "user", "content": question}]
    made = server.handle_chat_completions({"messages": turns, "temperature": 0, "max_tokens": 96, "logprobs": True})
    print("ANSWER" + json.dumps(made["choices"][0]))
"""


@pytest.fixture(scope="module")
def trained(rehearsal, tmp_path_factory):
    """A copy of the rehearsal's output, with its adapter, to export from."""
    folder = tmp_path_factory.mktemp("exports") / "output"
    shutil.copytree(rehearsal(SCRIPT).output, folder)
    return folder


@pytest.fixture(scope="module")
def script(functions):
    module = functions(SCRIPT)
    module.tokenizer = AutoTokenizer.from_pretrained(TINY)
    return module


@pytest.fixture(scope="module")
def converter(request):
    """llama.cpp's converter: from a clone that LLAMA_CPP names, else from PyPI, kept in pytest's cache."""
    if os.getenv("LLAMA_CPP"):
        return Path(os.environ["LLAMA_CPP"])
    cache = request.config.cache.mkdir("llama_cpp")
    if not (cache / "llama.cpp" / "convert_hf_to_gguf.py").exists():
        uv = shutil.which("uv") or str(ROOT / ".venv" / "bin" / "uv")
        # Without build isolation pip needs 12 s instead of 90 to learn the source's name and version.
        options = "--no-build-isolation --no-deps --no-binary :all: -q -d"
        command = [
            uv,
            *"tool run --with scikit-build-core pip download".split(),
            *options.split(),
            str(cache),
        ]
        try:
            subprocess.run([*command, SOURCE], check=True, capture_output=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(
                f"no llama.cpp converter: {SOURCE} cannot be downloaded ({error}); LLAMA_CPP may name a clone"
            )
        archive = next(cache.glob("*.tar.gz"))
        shutil.unpack_archive(archive, cache / "unpacked", filter="data")
        archive.unlink()
        found = next((cache / "unpacked").rglob("convert_hf_to_gguf.py")).parent
        (cache / "llama.cpp").mkdir(exist_ok=True)
        for name in ("conversion", "gguf-py", "convert_lora_to_gguf.py", "convert_hf_to_gguf.py"):
            shutil.move(found / name, cache / "llama.cpp" / name)
        shutil.rmtree(cache / "unpacked")
    return cache / "llama.cpp"


@pytest.fixture(scope="module")
def llama_cpp(converter, tmp_path_factory):
    """A llama.cpp folder as Unsloth expects one, whose converter knows the tiny model's tokenizer.

    llama.cpp recognises a tokenizer by a hash of its output and refuses others. The tiny one splits text by
    Qwen2.5's own pattern and differs in its vocabulary, so here an unknown hash means "qwen2". No wheel holds
    llama-quantize; where a clone has not built it, the converter writes q8_0 in its place, so that q4_k_m and
    its like stay untested.
    """
    folder = tmp_path_factory.mktemp("llama") / "llama.cpp"
    shutil.copytree(converter, folder, ignore=shutil.ignore_patterns(".git", "models", "tests"))
    base = folder / "conversion" / "base.py"
    text = base.read_text(encoding="utf-8")
    assert text.count("        res = None\n") == 1
    base.write_text(text.replace("        res = None\n", '        res = "qwen2"\n'), encoding="utf-8")
    (folder / "UNSLOTH_PREBUILT_INFO.json").write_text("{}", encoding="utf-8")
    if not (folder / "llama-quantize").exists():
        (folder / "llama-quantize").write_text(QUANTIZE.format(python=sys.executable, folder=folder))
        (folder / "llama-quantize").chmod(0o755)
    return folder


def prompt_of(question: str, script) -> str:
    turns = [{"role": "system", "content": script.SYSTEM}, {"role": "user", "content": question}]
    return script.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def answers(model, script) -> list[list[int]]:
    """Answer the questions greedily, one after the other; return the tokens with the end of the turn."""
    made = []
    for question in QUESTIONS:
        inputs = script.tokenizer(prompt_of(question, script), return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        made.append(output[0, inputs.input_ids.shape[1] :].tolist())
    return made


def regret(model, script, made: list[list[int]]) -> float:
    """Return the most by which a token of the answers lies below the model's own choice, in logits.

    0 is the model's greedy output; rounding moves near-ties, so the same output means "hardly above 0".
    """
    worst = 0.0
    for question, answer in zip(QUESTIONS, made):
        prompt = script.tokenizer(prompt_of(question, script)).input_ids
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
        worst = max([worst, *(logits.max(1).values - chosen).tolist()])
    return worst


@pytest.mark.parametrize("suffix", ["", "-bnb-4bit", "-unsloth-bnb-4bit"])
def test_merged_folder_answers_as_base_and_adapter(trained, script, monkeypatch, tmp_path, suffix):
    """Whatever 4-bit MODEL was trained, the merge is into the 16-bit base of that name."""
    shutil.copytree(trained / "lora", tmp_path / "lora")
    monkeypatch.setattr(script, "MODEL", TINY + suffix)
    script.export(tmp_path / "lora", "merged_16bit", "q8_0")
    names = {path.name for path in (tmp_path / "merged_16bit").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "adapter_config.json" not in names
    assert "quantization_config" not in json.loads((tmp_path / "merged_16bit" / "config.json").read_text())
    weights = load_file(tmp_path / "merged_16bit" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    if suffix:
        return
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged_16bit", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "lora")
    made = answers(adapted, script)
    with adapted.disable_adapter():
        alone = answers(adapted, script)
    assert regret(merged, script, made) < 0.1 and regret(adapted, script, answers(merged, script)) < 0.1
    assert regret(merged, script, alone) > 0.5, "the same answers as without the adapter"


def test_a_failing_conversion_loses_nothing(run_script, trained, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(trained, output)
    environment = {"UNSLOTH_LLAMA_CPP_PATH": str(tmp_path / "none"), "UNSLOTH_AUTO_INSTALL": "0"}
    run = run_script(SCRIPT, output, environment=environment, EXPORT="gguf", **SHORT)
    assert run.status == 1 and "Traceback" not in run.stderr
    assert "GGUF failed (" in run.stdout and not list(output.rglob("*.gguf"))
    before, after = (load_file(folder / "lora" / "adapter_model.safetensors") for folder in (trained, output))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert (output / "merged_16bit" / "model.safetensors").exists()
    assert {"metrics.json", "report.md", "loss.png"} <= {path.name for path in output.iterdir()}
    printed = re.findall(r"(?m)^  (python convert_hf_to_gguf\.py .+|llama-quantize .+)$", run.stdout)
    assert len(printed) == 2 and printed[1].endswith("model.Q8_0.gguf q8_0")


@pytest.fixture(scope="module")
def gguf(run_script, trained, llama_cpp):
    """A run with EXPORT = "gguf": its output folder."""
    environment = {"UNSLOTH_LLAMA_CPP_PATH": str(llama_cpp), "UNSLOTH_AUTO_INSTALL": "0"}
    run = run_script(SCRIPT, trained, environment=environment, EXPORT="gguf", **SHORT)
    assert run.status == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert f"ollama create output -f {trained}/gguf/Modelfile" in run.stdout
    return trained / "gguf"


def test_llama_cpp_answers_in_chatml_and_stops(gguf, script):
    """llama.cpp takes the file, applies its chat template and ends the answer at <|im_end|> by itself."""
    pytest.importorskip("xllamacpp", reason="llama.cpp itself: xllamacpp is not installed")
    given = [str(gguf / "model.Q8_0.gguf"), json.dumps(QUESTIONS), script.SYSTEM]
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, *given], capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    made = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert len(made) == len(QUESTIONS), done.stderr[-3000:]
    assert not [choice for choice in made if "<|im_" in choice["message"]["content"]]
    ended = [choice["finish_reason"] == "stop" for choice in made]
    assert any(ended)
    # Token by token, and with the <|im_end|> that ended it, this is what transformers chooses, q8_0 aside.
    tokens = [[token["id"] for token in choice["logprobs"]["content"]] for choice in made]
    end, *ends = map(
        script.tokenizer.convert_tokens_to_ids, ("<|im_end|>", "<|endoftext|>")
    )  # Qwen2.5 stops at both
    tokens = [part + [end] * (stop and part[-1] not in (end, *ends)) for part, stop in zip(tokens, ended)]
    model = AutoModelForCausalLM.from_pretrained(gguf.parent / "merged_16bit", dtype=torch.float32)
    assert regret(model, script, tokens) < 0.5


def test_the_modelfile_is_chatml(gguf, script):
    text = (gguf / "Modelfile").read_text(encoding="utf-8")
    assert (gguf / re.search(r"(?m)^FROM (.+)$", text)[1]).exists()
    assert set(re.findall(r'(?m)^PARAMETER stop "(.+)"$', text)) == {
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    }
    assert re.findall(r"(?m)^PARAMETER (\w+) [\d.]+$", text) == ["temperature", "top_p"]
    assert re.search(r'(?s)\nSYSTEM """(.+?)"""\n', text)[1] == script.SYSTEM
    template = re.search(r'(?s)\nTEMPLATE """(.+?)"""\n', text)[1]
    start, turn, rest = re.fullmatch(
        r"(?s)(.*?)\{\{- range \.Messages \}\}(.*?)\{\{ end \}\}(.*)", template
    ).groups()
    turns = [{"role": "system", "content": script.SYSTEM}, {"role": "user", "content": "Hello 你好"}]
    for message in turns:
        start += turn.replace("{{ .Role }}", message["role"]).replace("{{ .Content }}", message["content"])
    assert start + rest == script.tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )


def test_the_commands_printed_for_a_failure_work(trained, llama_cpp, script, tmp_path, monkeypatch, capsys):
    """The two lines, typed as they stand in a folder of llama.cpp, make the file that the export would have made."""
    shutil.copytree(trained / "lora", tmp_path / "lora")
    monkeypatch.setattr(script, "MODEL", TINY)
    monkeypatch.setitem(sys.modules, "unsloth_zoo", None)  # the import inside fails
    with pytest.raises(SystemExit) as stopped:
        script.export(tmp_path / "lora", "gguf", "q8_0")
    assert stopped.value.code == 1
    printed = re.findall(r"(?m)^  ((?:python|llama-quantize) .+)$", capsys.readouterr().out)
    path = f"{Path(sys.executable).parent}{os.pathsep}{llama_cpp}{os.pathsep}{os.environ['PATH']}"
    for command in printed:
        environment = {**os.environ, "PATH": path}
        done = subprocess.run(command.split(), cwd=llama_cpp, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, command + done.stderr[-2000:]
    made = tmp_path / "gguf" / "model.Q8_0.gguf"
    assert made.read_bytes()[:4] == b"GGUF" and made.stat().st_size > 4e6


def test_ollama_takes_the_modelfile(gguf):
    if not shutil.which("ollama"):
        pytest.skip(
            "ollama is not installed here: the Modelfile's text is checked, not that ollama create takes it"
        )
    command = ["ollama", "create", "unsloth-scripts-test", "-f", str(gguf / "Modelfile")]
    assert subprocess.run(command, capture_output=True).returncode == 0
