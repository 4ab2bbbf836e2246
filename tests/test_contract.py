"""Every keyword that a script hands to a library is one that the library names, on a CPU and on a GPU.

Unsloth's functions take any keyword and drop what they do not know with no more than a warning, so a misspelt one
would only show in the result. The calls are found in the syntax tree; what they are checked against is loaded in
processes of their own, since importing Unsloth rewrites its libraries: plain TRL, and Unsloth as it is on a GPU.
"""

import ast
import json
import subprocess
import sys
from functools import cache

import pytest
from conftest import ROOT, constants_of

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
OBJECTS = {  # variable of the scripts -> the class whose methods it has
    "model": "peft.PeftModel",
    "base": "transformers.PreTrainedModel",
    "tokenizer": "transformers.PreTrainedTokenizerFast",
    "processor": "transformers.Qwen2_5_VLProcessor",
    "trainer": "transformers.Trainer",
}
CHECK = r"""
import inspect, json, re, sys
from importlib import import_module
plain, calls = sys.argv[1] == "plain", json.loads(sys.argv[2])
if not plain:
    import simulated_cuda
    simulated_cuda.install()
    import unsloth
    from unsloth.models.llama import FastLlamaModel
    from unsloth.models.vision import FastBaseModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, Qwen2ForCausalLM
from peft import LoraConfig

BEHIND = {  # a function that passes its keywords on: what the one behind it names counts as well
    r"^transformers\.AutoModel\w+\.from_pretrained$": [PreTrainedModel.from_pretrained],
    r"^peft\.PeftModel$|\.generate$": [Qwen2ForCausalLM.forward],
    r"^transformers\.(PreTrainedTokenizerFast|Qwen2_5_VLProcessor)$": [PreTrainedTokenizerBase.__call__],
    r"\.(batch_decode|TextIteratorStreamer|Qwen2_5_VLProcessor\.decode)$": [PreTrainedTokenizerBase.decode],
}
if not plain:
    BEHIND |= {
        r"FastLanguageModel\.get_peft_model$": [FastLlamaModel.get_peft_model, LoraConfig],
        r"FastVisionModel\.get_peft_model$": [FastBaseModel.get_peft_model],
        r"UnslothVisionDataCollator$": [unsloth.UnslothVisionDataCollator.__mro__[1]],
    }

def names_of(function):
    # The explicit parameters, and what the body takes out of its **kwargs by name.
    function = inspect.unwrap(getattr(function, "__func__", function))
    names = {n for n, p in inspect.signature(function).parameters.items() if p.kind.name != "VAR_KEYWORD"}
    try:
        source = inspect.getsource(function.__init__ if inspect.isclass(function) else function)
    except OSError:  # the __init__ of a dataclass is generated
        source = ""
    return names | set(re.findall(r'kwargs(?:\.pop|\.get|)[\[(]\s*"(\w+)"', source))


def known(path, function):
    names = names_of(function)
    for pattern, functions in BEHIND.items():
        if re.search(pattern, path):
            for behind in functions:
                names |= names_of(behind)
    return names | set(vars(GenerationConfig())) if path.endswith(".generate") else names


wrong = []
for script, line, path, keywords in calls:
    parts = path.split(".")
    if plain == (parts[0] == "unsloth"):
        continue
    thing = import_module(parts[0])
    for place, part in enumerate(parts[1:], 1):
        thing = getattr(thing, part, None) or import_module(".".join(parts[: place + 1]))
    called = path in ("transformers.PreTrainedTokenizerFast", "transformers.Qwen2_5_VLProcessor", "peft.PeftModel")
    names = known(path, thing.__call__ if called else thing)  # the object is, not the class
    wrong += [f"{script}, line {line}: {path} names no {word}" for word in keywords if word not in names]
print("WRONG", json.dumps(wrong))
"""


def calls_of(script: str, source: str) -> list[list]:
    """Return [script, line, dotted name of a library's function, keywords] of each call with keywords."""
    tree, places = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            places |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            places |= {
                alias.asname or alias.name.partition(".")[0]: alias.name
                if alias.asname
                else alias.name.partition(".")[0]
                for alias in node.names
            }
    calls = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            place = OBJECTS.get(first) or places.get(first, "")
            keywords = [keyword.arg for keyword in node.keywords if keyword.arg]
            package = place.partition(".")[0]
            if rest.endswith("fast_generate"):  # of vLLM's engine, which Unsloth hangs on the model
                continue
            if keywords and package in "unsloth trl transformers peft datasets".split() and "(" not in rest:
                calls.append([script, node.lineno, f"{place}.{rest}" if rest else place, keywords])
    return calls


@cache
def wrong_keywords(environment: str, calls: str) -> list[str]:
    """Return what the libraries do not name, of calls as JSON, as they are in an environment: plain or gpu."""
    command = [sys.executable, "-c", CHECK, environment, calls]
    result = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.rpartition("WRONG ")[2])


ALL = [call for script in SCRIPTS for call in calls_of(script, (ROOT / script).read_text(encoding="utf-8"))]


@pytest.mark.parametrize("environment", ["plain", "gpu"])
def test_every_keyword_is_known(environment):
    assert wrong_keywords(environment, json.dumps(ALL)) == []


def test_the_calls_that_matter_are_found():
    found = {(script, path.rpartition(".")[2]) for script, _, path, _ in ALL}
    text = [script for script in SCRIPTS if script != "vl_car_insurance.py"]
    assert {(script, "from_pretrained") for script in SCRIPTS} <= found
    assert {(script, name) for script in text for name in ("get_peft_model", "train")} <= found
    trained = {"grpo_r1.py": ("GRPOConfig", "GRPOTrainer")}
    assert {
        (script, name) for script in SCRIPTS for name in trained.get(script, ("SFTConfig", "SFTTrainer"))
    } <= found
    assert ("vl_car_insurance.py", "UnslothVisionDataCollator") in found


@pytest.mark.parametrize("environment", ["plain", "gpu"])
def test_a_misspelt_keyword_is_found(environment):
    source = (ROOT / "sft_gongwen.py").read_text(encoding="utf-8")
    for word in ("max_seq_length=", "lora_alpha=", "warmup_steps=", "dataset_num_proc=", "processing_class="):
        source = source.replace(word, f"x_{word}")
    wrong = wrong_keywords(environment, json.dumps(calls_of("sft_gongwen.py", source)))
    words = {message.rpartition(" ")[2] for message in wrong}
    on_gpu = {"x_max_seq_length", "x_lora_alpha"}
    other = {"x_warmup_steps", "x_dataset_num_proc", "x_processing_class"}
    assert words >= (on_gpu if environment == "gpu" else other)


GPU_SETTINGS = r"""
import ast, json, sys, zlib
from types import SimpleNamespace
import torch, trl
failed = []
for script, constants, name, call in json.loads(sys.argv[1]):
    names = {"OUTPUT": "nowhere", "folder": "nowhere", "MODEL": "x", "DATA": "x", "settings": {}, **constants}
    names |= dict.fromkeys(("train_rows", "eval_rows", "subset"), [])
    names["model"] = SimpleNamespace(dtype=torch.bfloat16)
    names |= {"torch": torch, "zlib": zlib}
    keywords = ast.parse(call).body[0].value.keywords
    for recompute in (False, constants["GRADIENT_CHECKPOINTING"]):
        names["GRADIENT_CHECKPOINTING"] = recompute
        values = {keyword.arg: eval(ast.unparse(keyword.value), names) for keyword in keywords}
        config = getattr(trl, name)(**values, use_cpu=True)
        if config.gradient_checkpointing != bool(recompute):  # TRL's default is True, whatever the model was told
            failed.append(f"{script}: GRADIENT_CHECKPOINTING = {recompute} is not obeyed")
    if name == "SFTConfig" and config.loss_type != "nll":  # what Unsloth sets on a card, and its chunks on a CPU need
        failed.append(f"{script}: loss_type is {config.loss_type}")
    for key, value in values.items():
        kept = getattr(config, key)
        if key not in ("output_dir", "report_to") and (getattr(kept, "value", kept)) != value:
            failed.append(f"{script}: {key} is {kept}, not {value}")
    if not config.bf16:
        failed.append(f"{script}: not in bfloat16")
print("FAILED", json.dumps(failed))
"""


def test_gpu_settings_can_be_instantiated():
    """What a card gets, not the rehearsal's: each config is built from the constants above the rehearsal's block."""
    given = []
    for script in SCRIPTS:
        source = (ROOT / script).read_text(encoding="utf-8")
        tree = ast.parse(source)
        constants = {}
        for name, value in constants_of(tree).items():
            try:
                constants[name] = ast.literal_eval(value)
            except ValueError:
                continue  # read from the environment
        for node in ast.walk(tree):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if name in ("SFTConfig", "GRPOConfig"):
                given.append([script, constants, name, ast.unparse(node)])
    assert len(given) == len(SCRIPTS)
    command = [sys.executable, "-c", GPU_SETTINGS, json.dumps(given)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.rpartition("FAILED ")[2]) == []
