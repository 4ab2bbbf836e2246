# %% [markdown]
"""
# Export: from an adapter to a model that others run, and whether it still answers the same

Merges a LoRA adapter into its 16-bit base, converts it for llama.cpp and Ollama, and answers the held-out
prompts again with what was exported: how many answers are the same, where the others part, what it costs.

Run:    `uv run tools/export.py outputs/gongwen`, or with kinds: `uv run tools/export.py FOLDER merged q8_0`
Data:   FOLDER/lora, or FOLDER itself, is an adapter; of a run also answers.jsonl and metrics.json
Writes: FOLDER/merged_16bit, FOLDER/gguf with Ollama's Modelfile, a model card (README.md) in both; "exported"
        and "exported_ended" in answers.jsonl, "parity" in metrics.json. Exit status 1: something is wrong
"""

# %% Imports
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.request import Request, urlopen

import numpy as np
import psutil
import torch
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model_state_dict
from PIL import Image
from sacrebleu import sentence_chrf
from safetensors import safe_open
from scipy import stats
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)

# %% Settings
OUTPUT = "outputs/gongwen"  # or the first argument
KINDS = ["merged"]  # or the other arguments, of these and GGUF
# 16, 8.5, 6.6, 5.7 and 4.9 bits a weight; where rows are no multiple of 256 long, the last three take up to 8.5
GGUF = ["bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]
DIRECT = ["bf16", "q8_0"]  # of these what llama.cpp's converter writes itself; the others need llama-quantize
BASE = None  # the 16-bit base, a folder or a name on the hub; None: what adapter_config.json says
BATCH = 8  # prompts that the merged model answers at once. Out of memory: 1
NEW_TOKENS = 512  # longest answer, if metrics.json does not say
SMALL = 100_000_000  # weights: a model with fewer is stored in 32 bit, where nothing is rounded
CONVERT = """
import sys, unsloth
from pathlib import Path
from unsloth_zoo.llama_cpp import convert_to_gguf, install_llama_cpp, quantize_gguf
merged, target, kind, direct = sys.argv[1:]
quantizer, converter = install_llama_cpp()
stem = str(Path(target).with_name("model" if direct == kind else "unquantized"))
files, _ = convert_to_gguf(stem, merged, "bfloat16", direct, converter_location=converter)
if direct != kind:
    try:
        quantize_gguf(files[0], target, kind, quantizer_location=quantizer)
    finally:
        Path(files[0]).unlink()
"""  # in a process of its own: importing Unsloth changes transformers


# %% Files
def is_conversation(prompt: object) -> bool:
    """Return whether a prompt is a list of messages, each with a role and a content (text, or parts of it)."""
    turns = prompt if isinstance(prompt, list) else []
    kinds = [
        isinstance(turn, dict)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), (str, list))
        for turn in turns
    ]
    return bool(kinds) and all(kinds)


def read_answers(path: Path) -> list[dict]:
    """Return the rows of a run's answers.jsonl; ValueError names a line that lacks what is needed."""
    rows = []
    if not path.is_file():
        raise ValueError(f"{path} is no regular file")
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}): mend that line") from None
        if row is not None:
            prompt = row.get("prompt") if isinstance(row, dict) else None
            if not (is_conversation(prompt) and isinstance(row.get("after"), str)):
                raise ValueError(f"{path}, line {number}: needs prompt (messages), reference, after (a text)")
            rows.append(row)
    return rows


def json_object(path: Path) -> dict:
    """Return the object in a JSON file; ValueError names a file that holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all; half of a cut emoji becomes JSON's escape."""
    with NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


# %% Merge
def find_adapter(folder: Path) -> Path:
    """Return the adapter in a run's folder, or the folder if it is one; ValueError without any."""
    for path in (folder / "lora", folder):
        if (path / "adapter_config.json").is_file() and (path / "adapter_model.safetensors").is_file():
            return path
    raise ValueError(f"{folder}: no adapter_config.json with adapter_model.safetensors, and none in lora/")


def base_of(adapter: Path) -> str:
    """Return the 16-bit base of an adapter, which may have been trained on the 4-bit copy of that name."""
    config = json_object(adapter / "adapter_config.json")
    name, rank = BASE or config.get("base_model_name_or_path"), config.get("r", 8)
    if not (isinstance(name, str) and name and name.isprintable()):
        raise ValueError(f"{adapter}/adapter_config.json names no base_model_name_or_path: set BASE")
    if type(rank) is not int or not 0 < rank <= 512:
        raise ValueError(f"{adapter}/adapter_config.json: r is {rank!r:.40}, no number from 1 to 512")
    name = BASE or re.sub("(-unsloth)?-bnb-4bit/?$", "", name)  # BASE is meant as it stands
    here = Path(__file__).parent.parent / name  # a folder of this collection, from wherever this is started
    return str(here) if here.is_dir() and not Path(name).is_dir() else name


def load_model(name: str | Path):
    """Return a model on the CPU, in 16 bit, or 32 if SMALL; ValueError if it is not there or is quantized."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if getattr(config, "quantization_config", None):
            raise ValueError(f"{name} is quantized: a merge keeps its errors; set BASE to the 16-bit weights")
        auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
        model = auto.from_pretrained(name, dtype="auto", trust_remote_code=False).eval()
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} cannot be loaded ({reason}): set BASE to the 16-bit weights") from None
    if model.num_parameters() < SMALL:
        return model.float()
    return model.bfloat16() if model.dtype == torch.float32 else model


def load_adapted(adapter: Path, base: str):
    """Return the base with its adapter; ValueError if the adapter is damaged or does not fit the base."""
    try:
        with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
            names = set(file.keys())
            bad = [name for name in names if not file.get_tensor(name).float().isfinite().all()]
    except Exception as error:  # safetensors has an error of its own
        raise ValueError(f"{adapter}/adapter_model.safetensors is damaged: {error}") from None
    if bad:
        raise ValueError(f"{adapter}: {len(bad)} tensors hold no finite numbers, such as {min(bad)}")
    model = load_model(base)
    try:
        model = PeftModel.from_pretrained(model, adapter).eval()
    except Exception as error:  # PEFT's, of a config or of shapes that it does not take
        raise ValueError(f"{adapter} cannot be put on {base}: {str(error)[:300]}") from None
    places = set(get_peft_model_state_dict(model))
    if lost := names - places:
        raise ValueError(f"{adapter}: {len(lost)} tensors have no place in {base}, such as {min(lost)}")
    if lacking := {name for name in places - names if ".lora_" in name}:  # would stay as they began
        raise ValueError(f"{adapter} lacks {len(lacking)} tensors, such as {min(lacking)}")
    return model


def load_tokenizer(folder: str | Path, model):
    """Return the tokenizer of a folder, or the processor for a model that sees."""
    auto = AutoProcessor if hasattr(model.config, "vision_config") else AutoTokenizer
    return auto.from_pretrained(folder, trust_remote_code=False)


def merge(adapter: Path, base: str, target: Path) -> None:
    """Write the base with the adapter merged in, its generation settings and the adapter's tokenizer."""
    model = load_adapted(adapter, base).merge_and_unload()
    shutil.rmtree(target, ignore_errors=True)
    model.save_pretrained(target)
    load_tokenizer(adapter, model).save_pretrained(target)


# %% Answer with transformers
def prompt_text(tokenizer, messages: list[dict]) -> str:
    """Return the text that a conversation becomes, up to where the answer begins."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def pictures(row: dict, folder: Path) -> list[Image.Image]:
    """Return the pictures of a row, from the run's folder or from here; ValueError names a missing one."""
    names, found = row.get("images") or row.get("image") or [], []
    for name in [names] if isinstance(names, str) else names:
        path = folder / name if (folder / name).is_file() else Path(name)
        if not path.is_file():
            raise ValueError(f"answers.jsonl: its picture {name} is not there")
        found.append(Image.open(path).convert("RGB"))
    return found


def place(model):
    """Return a model where it can answer: on a GPU with room, else on the CPU, in 32 bit if RAM allows."""
    weights = model.num_parameters()
    if weights > SMALL and torch.cuda.is_available() and 2.4 * weights < torch.cuda.mem_get_info()[0]:
        return model.to("cuda")
    return model.float() if 4.8 * weights < psutil.virtual_memory().available else model


def answer(model, tokenizer, rows: list[dict], folder: Path, new_tokens: int) -> list[tuple[str, bool]]:
    """Answer prompts as the scripts do, greedily and batched; return texts and whether they ended."""
    answers, ends = [], torch.tensor(model.generation_config.eos_token_id)
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        given = {"text": [prompt_text(tokenizer, row["prompt"]) for row in batch], "return_tensors": "pt"}
        given |= {"padding": True, "padding_side": "left", "add_special_tokens": False}
        images = [pictures(row, folder) for row in batch]
        inputs = tokenizer(**given, **({"images": images} if any(images) else {})).to(model.device)
        with torch.inference_mode():
            outputs = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        for output in outputs[:, inputs["input_ids"].shape[1] :].cpu():
            text = tokenizer.decode(output, skip_special_tokens=True).strip()
            answers.append((text, bool(torch.isin(output, ends).any())))
        print(f"  {len(answers)} of {len(rows)} prompts answered")
    return answers


# %% Answer with llama.cpp
def convert(merged: Path, kind: str, target: Path) -> None:
    """Write a merged model as GGUF; ValueError with the commands that do it by hand if that fails."""
    print("GGUF: where ~/.unsloth has no llama.cpp, Unsloth fetches it from github.com and may install what")
    print("building it needs. UNSLOTH_AUTO_INSTALL=0 forbids it; UNSLOTH_LLAMA_CPP_PATH names your own copy.")
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    environment = {"UNSLOTH_DISABLE_STATISTICS": "1", **os.environ}
    direct = kind if kind in DIRECT else "bf16"
    command = [sys.executable, "-c", CONVERT, str(merged), str(target), kind, direct]
    if subprocess.run(command, env=environment).returncode or not target.exists():
        target.unlink(missing_ok=True)  # half of one
        plain = target if kind in DIRECT else target.with_name("model.BF16.gguf")
        failed = (
            f"GGUF failed, the reason stands above. {merged} is complete; by hand, in a clone of llama.cpp:\n"
        )
        failed += f"  python convert_hf_to_gguf.py {merged} --outfile {plain} --outtype {direct}"
        if kind not in DIRECT:
            failed += f"\n  llama-quantize {plain} {target} {kind}\n"
            failed += "No package of Python's holds llama-quantize. With a C++ compiler, in that clone:\n"
            failed += "  cmake -B build && cmake --build build --target llama-quantize && cp build/bin/llama-quantize .\n"
            failed += "Then UNSLOTH_LLAMA_CPP_PATH=CLONE lets this program use it. Without a compiler: q8_0, by hand."
        raise ValueError(failed)


def start_server(file: Path, tokens: int):
    """Return llama.cpp's server with a GGUF file, on a free port of 127.0.0.1, with room for tokens."""
    import xllamacpp  # needed for GGUF only

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(file), tokens, 1
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.verbosity, params.warmup = -1, False
    params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE  # as text
    params.force_pure_content_parser = True  # what looks like a tool call is text as well
    if file.stat().st_size < 2 * SMALL:  # threads would spend their time waiting for each other
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def answer_gguf(file: Path, tokenizer, rows: list[dict], new_tokens: int, penalty: float):
    """Answer prompts with llama.cpp and the file's own chat template, greedily.

    Return texts and whether each ended by itself, and how many prompts that template words otherwise.
    """
    prompts = [prompt_text(tokenizer, row["prompt"]) for row in rows]
    tokens = 2 * max(len(tokenizer(prompt).input_ids) for prompt in prompts) + new_tokens
    server, answers, otherwise = start_server(file, tokens), [], 0
    options = {"temperature": 0, "max_tokens": new_tokens, "repeat_penalty": penalty, "repeat_last_n": tokens}
    for row, prompt in zip(rows, prompts):
        made = server.handle_chat_completions({"messages": row["prompt"], **options})
        if "error" in made:
            raise ValueError(f"{file}: llama.cpp refuses a prompt: {made['error'].get('message')}")
        choice = made["choices"][0]
        answers.append(((choice["message"]["content"] or "").strip(), choice["finish_reason"] == "stop"))
        body = json.dumps({"messages": row["prompt"]}).encode()
        asked = Request(f"{server.listening_address}/apply-template", body)
        asked.add_header("Content-Type", "application/json")
        with urlopen(asked, timeout=60) as reply:
            otherwise += json.load(reply)["prompt"] != prompt
    return answers, otherwise


# %% Parity
def compare(before: list[float], after: list[float]) -> dict[str, float | None]:
    """Return the mean paired difference after - before, its bootstrap 95% interval and permutation p-value.

    `smallest` is what so many rows show in 80% of cases: 2.8 standard errors. None: too few rows to say.
    """
    change = np.subtract(after, before)
    value = low = high = float(change.mean())
    p = smallest = None
    if len(change) > 1:
        p = float(stats.permutation_test((change,), np.mean, permutation_type="samples", rng=0).pvalue)
    if np.ptp(change) > 0:
        low, high = map(float, stats.bootstrap((change,), np.mean, rng=0).confidence_interval)
        smallest = 2.8 * float(stats.sem(change))
    return {"value": value, "low": low, "high": high, "p": p, "smallest": smallest}


def first_difference(tokenizer, one: str, other: str) -> int | None:
    """Return the number of tokens that two texts share at their start; None if they are the same."""
    if one == other:
        return None
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor's
    pairs = list(zip(tokenizer(one).input_ids, tokenizer(other).input_ids))
    return next((number for number, (a, b) in enumerate(pairs) if a != b), len(pairs))


def parity(tokenizer, rows: list[dict], answers: list[tuple[str, bool]], otherwise: int) -> dict:
    """Return how well the answers of an export agree with the run's: share, places, chrF, ends."""
    texts = [text for text, _ in answers]
    places = [first_difference(tokenizer, row["after"].strip(), text) for row, text in zip(rows, texts)]
    wanted = [row.get("reference") or "" for row in rows]
    wanted = [text if isinstance(text, str) else json.dumps(text, ensure_ascii=False) for text in wanted]
    after = [sentence_chrf(row["after"], [text]).score for row, text in zip(rows, wanted)]
    exported = [sentence_chrf(made, [text]).score for made, text in zip(texts, wanted)]
    means = {"after": float(np.mean(after)), "exported": float(np.mean(exported))}
    return {
        "rows": len(rows),
        "identical": places.count(None) / len(rows),
        "differ_at": [place for place in places if place is not None],
        "chrf": means | compare(after, exported),
        "ended": sum(end for _, end in answers),
        "ended_after": sum(row["after_ended"] for row in rows) if "after_ended" in rows[0] else None,
        "otherwise": otherwise,
    }


def check_merged(adapter: Path, base: str, merged: Path, rows: list[dict], new_tokens: int):
    """Return (parity, answers) of a merged model.

    A run answers in 16 or 4 bit and parts from 32. So where a model is SMALL, what differs is asked of the
    unmerged adapter in 32 bit, too: only a faulty export differs from that ("unexplained").
    """
    model = place(load_model(merged))
    tokenizer, trained = load_tokenizer(merged, model), load_tokenizer(adapter, model)
    prompts = [row["prompt"] for row in rows]
    otherwise = [prompt_text(tokenizer, turns) != prompt_text(trained, turns) for turns in prompts]
    answers = answer(model, tokenizer, rows, merged.parent, new_tokens)
    result = parity(tokenizer, rows, answers, sum(otherwise))
    if model.num_parameters() < SMALL:
        parted = [(row, text) for row, (text, _) in zip(rows, answers) if row["after"].strip() != text]
        asked = [row for row, _ in parted]
        own = answer(load_adapted(adapter, base), trained, asked, merged.parent, new_tokens)
        result["unexplained"] = sum(text != again for (_, text), (again, _) in zip(parted, own))
    return result, answers


def check_gguf(merged: Path, file: Path, rows: list[dict], new_tokens: int):
    """Return (parity, answers) of a GGUF file, which llama.cpp reads."""
    tokenizer = AutoTokenizer.from_pretrained(merged, trust_remote_code=False)
    penalty = GenerationConfig.from_pretrained(merged).repetition_penalty or 1.0
    answers, otherwise = answer_gguf(file, tokenizer, rows, new_tokens, penalty)
    return parity(tokenizer, rows, answers, otherwise), answers


def faults(result: dict) -> list[str]:
    """Return what is wrong with an export by its parity, [] if nothing is."""
    found, rows, chrf = [], result["rows"], result["chrf"]
    if result["otherwise"]:
        found.append(f"its chat template words {result['otherwise']} of {rows} prompts otherwise")
    if (result["ended_after"] or 0) - result["ended"] > max(1, 0.1 * rows):
        found.append(f"{result['ended']} answers end by themselves, {result['ended_after']} did: end token?")
    if result.get("unexplained"):
        found.append(f"{result['unexplained']} answers are not what the adapter itself says in 32 bit")
    if chrf["p"] is not None and chrf["p"] < 0.05 and chrf["value"] < 0:
        found.append("its answers are less like the references, by more than chance")
    return found


def describe(result: dict) -> str:
    """Return the parity of an export in words."""
    chrf, places = result["chrf"], result["differ_at"]
    text = f"{result['identical']:.1%} of {result['rows']} answers are identical to the run's"
    if places:
        listed = ", ".join(str(place) for place in places)
        text += f"; {len(places)} part at token {np.median(places):.0f} (median of {listed})"
    if "unexplained" in result:
        text += f"; {1 - result['unexplained'] / result['rows']:.1%} are the adapter's own in 32 bit"
    if "identical_to_merged" in result:
        text += f"; {result['identical_to_merged']:.1%} are identical to the merged model's"
    text += f"; chrF {chrf['after']:.2f} -> {chrf['exported']:.2f}"
    text += f" ({chrf['low']:+.2f} to {chrf['high']:+.2f})"
    return text + f"; ended by themselves {result['ended_after']} -> {result['ended']}"


# %% Ollama, model card, serving
def chatml(messages: list[dict]) -> str:
    """Return a conversation as the Modelfile's TEMPLATE makes it."""
    text = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)
    return text + "<|im_start|>assistant\n"


def modelfile(merged: Path, file: str, rows: list[dict], context: int) -> str:
    """Return Ollama's Modelfile: chat template, system message, end tokens, and greedy as it was evaluated.

    For a chat template other than ChatML there is no TEMPLATE: Ollama looks for one in the GGUF file.
    """
    tokenizer = AutoTokenizer.from_pretrained(merged, trust_remote_code=False)
    generation = GenerationConfig.from_pretrained(merged)
    lines, user = [f"FROM ./{file}"], {"role": "user", "content": "?"}
    given = {row["prompt"][0]["content"] for row in rows if row["prompt"][0]["role"] == "system"}
    system = given.pop() if len(given) == 1 else ""
    if not system:  # what the chat template puts there itself
        text = prompt_text(tokenizer, [user]).partition("<|im_start|>system\n")[2]
        system = text.partition("<|im_end|>")[0]
    asked = [{"role": "system", "content": system}, user] if system else [user]
    if prompt_text(tokenizer, asked) == chatml(asked):
        turn = "<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n"
        lines.append(f'TEMPLATE """{{{{ range .Messages }}}}{turn}{{{{ end }}}}<|im_start|>assistant\n"""')
    else:
        print("The chat template is not ChatML: Ollama has to find one in the GGUF file")
    lines += [f'SYSTEM """{system}"""'] if system and '"""' not in system else []
    ends = generation.eos_token_id or tokenizer.eos_token_id
    for token in tokenizer.convert_ids_to_tokens(ends if isinstance(ends, list) else [ends]):
        lines.append(f'PARAMETER stop "{token}"')
    lines.append(f"PARAMETER repeat_penalty {generation.repetition_penalty or 1.0}")  # Ollama's own is 1.1
    lines += ["PARAMETER repeat_last_n -1", "PARAMETER temperature 0", f"PARAMETER num_ctx {context}"]
    return "\n".join(lines) + "\n"


def licence_of(base: str) -> str:
    """Return the licence that the model card of a base names, else where to look."""
    local = Path(base).is_dir()
    try:
        card = ModelCard.load(Path(base) / "README.md" if local else base).data
        return card.get("license_name") or card.get("license") or "not named in its model card"
    except Exception:  # no card, no network, no access: each has an error of its own
        return f"see {base}" if local else f"see https://huggingface.co/{base}"


def model_card(title: str, base: str, metrics: dict) -> str:
    """Return a model card: base and licence, scores before and after, parity of the exports, settings."""
    licence, settings = licence_of(base), metrics.get("settings", {})
    text = f"---\nbase_model: {base}\nlibrary_name: transformers\n"
    text += f"license: {licence}\n" if re.fullmatch(r"[a-z0-9.-]+", licence) else ""
    text += f"---\n\n# {title}\n\n{base} (licence: {licence}), fine-tuned with LoRA on "
    text += f"{settings.get('DATA', 'own data')}. The licences of both hold for this model, too.\n"
    if str(metrics.get("model", "")).startswith("data/tiny"):
        text += "\n**A rehearsal with a tiny model: what it writes is of no use to anyone.**\n"
    text += "\n| held-out rows | before | after |\n|---|---|---|\n" if metrics.get("after") else ""
    for name, value in metrics.get("after", {}).items():
        text += f"| {name} | {metrics['before'].get(name, np.nan):.4g} | {value:.4g} |\n"
    for kind, result in metrics.get("parity", {}).items():
        text += f"\n{kind}: {describe(result)}.\n"
    return text + f"\n```json\n{json.dumps(settings, ensure_ascii=False, indent=1)}\n```\n"


def serving(folder: Path, adapter: Path, base: str, kinds: list[str]) -> list[str]:
    """Return the commands that serve what was exported."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    name, rank = folder.name, next(size for size in (16, 32, 64, 128, 256, 512) if config["r"] <= size)
    lines = [f"vllm serve {folder / 'merged_16bit'} --served-model-name {name}"]
    if not config.get("use_dora"):  # which vLLM does not take
        adapted = f"--enable-lora --max-lora-rank {rank} --lora-modules {name}={adapter}"
        lines.append(f"vllm serve {base} {adapted}")
    if set(kinds) - {"merged"}:
        lines.append(f"ollama create {name} -f {folder / 'gguf' / 'Modelfile'} && ollama run {name}")
    return lines


# %% Run
sys.stdout.reconfigure(errors="backslashreplace")  # what a model wrote may not fit the terminal's encoding
folder, kinds = Path(sys.argv[1] if len(sys.argv) > 1 else OUTPUT).absolute(), sys.argv[2:] or KINDS
merged, metrics, rows, made, failed = folder / "merged_16bit", {}, [], {}, False
try:
    if not set(kinds) <= {"merged", *GGUF}:
        raise ValueError(f"{' '.join(kinds)}: kinds are merged, {', '.join(GGUF)}")
    adapter = find_adapter(folder)
    base = base_of(adapter)
    if (folder / "answers.jsonl").exists():
        rows = read_answers(folder / "answers.jsonl")
    if (folder / "metrics.json").is_file():
        metrics = json_object(folder / "metrics.json")
    merge(adapter, base, merged)
except ValueError as error:
    raise SystemExit(str(error)) from None
print(f"Merged into {base}: {merged}")
settings = {"NEW_TOKENS": NEW_TOKENS, "MAX_LENGTH": 4096, **metrics.get("settings", {})}
if rows and settings.get("LOAD_IN_4BIT"):
    print("The run answered on 4-bit weights: chrF, not the share of identical answers, says what is lost")
for kind in kinds:
    file = folder / "gguf" / f"model.{kind.upper()}.gguf"
    try:
        if kind != "merged":
            if hasattr(AutoConfig.from_pretrained(merged, trust_remote_code=False), "vision_config"):
                raise ValueError(f"{kind}: a model that sees is exported merged only")
            convert(merged, kind, file)
            text = modelfile(merged, file.name, rows, settings["MAX_LENGTH"] + settings["NEW_TOKENS"])
            write_text(file.with_name("Modelfile"), text)
        if not rows:
            print(f"{kind}: no answers.jsonl in {folder} to compare it with")
            continue
        if kind == "merged":
            result, answers = check_merged(adapter, base, merged, rows, settings["NEW_TOKENS"])
        else:
            result, answers = check_gguf(merged, file, rows, settings["NEW_TOKENS"])
    except (ValueError, ImportError) as error:
        failed = True
        print(error)
        continue
    made[kind] = [text for text, _ in answers]
    if kind != "merged" and "merged" in made:
        same = [text == other for text, other in zip(made[kind], made["merged"])]
        result["identical_to_merged"] = sum(same) / len(same)
    print(f"{kind}: {describe(result)}")
    for fault in faults(result):
        failed = True
        print(f"{kind} IS WRONG: {fault}")
    for row, (text, ended) in zip(rows, answers):
        row["exported"], row["exported_ended"] = text, ended
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_text(folder / "answers.jsonl", "".join(lines))
    metrics.setdefault("parity", {})[kind] = result
if (folder / "metrics.json").exists():
    write_text(folder / "metrics.json", json.dumps(metrics, ensure_ascii=False, indent=2))
for target in (merged, folder / "gguf"):
    if target.is_dir():
        write_text(target / "README.md", model_card(folder.name, base, metrics))
judge = Path(__file__).parent.parent / "data" / str(metrics.get("scenario")) / "judge.py"
if judge.exists() and rows and "exported" in rows[0]:
    print(f"To score the exported answers: python {judge} {folder}")
print("To serve:", *serving(folder, adapter, base, kinds), sep="\n  ")
raise SystemExit(int(failed))
