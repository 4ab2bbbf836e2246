# %% [markdown]
"""
# A LoRA update as a sum of rank-one matrices

Draws the singular values of what a LoRA adapter learnt, (alpha / r) B A, of rank r at most, beside those of
what full fine-tuning changes in the tiny model and of the weight itself, which keeps its full rank.

Run:    `uv run image_svd/lora_spectra.py` after a training script, which saves outputs/*/lora
Data:   adapters in PEFT's layout, the newest one being drawn; data/tiny-qwen2.5
Writes: `outputs/image_svd/lora.png`
"""

# %% Imports
import json
import os
import re
import sys
from glob import glob
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

# %% Settings
MODEL = os.getenv("MODEL") or "data/tiny-qwen2.5"  # fully fine-tuned for a few steps on the CPU: a small one
OUTPUT = os.getenv("OUTPUT") or "outputs/image_svd"
ADAPTER = "outputs/*/lora"  # folders of adapters, as a pattern; the newest is drawn

STEPS = 20  # of full fine-tuning on TEXT
LEARNING_RATE = 1e-4
TEXT = (
    "Low rank is a property of the change, not of the weight.",
    "A photograph needs few terms where it is smooth, and many where there is fur.",
    "Two thin matrices are trained; the large one stays as it was.",
    "After merging, the weight has the same shape and, as before, full rank.",
)


# %% Data
def alpha_of(module: str, config: dict) -> float:
    """Return the alpha of a module, which may have one of its own; ValueError if it is no number above 0."""
    alpha = config.get("lora_alpha")
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.search(r"[*+{]", pattern.replace(".*", "", 2)):  # some would be tried for years
            raise ValueError(f"alpha_pattern {pattern!r:.80} is too intricate")
        if re.search(rf"(^|\.){pattern}$", module):
            alpha = own
            break
    if type(alpha) not in (int, float) or not 0 < alpha < 1e6:
        raise ValueError(f"alpha of {module} is {alpha!r:.40}, no number above 0")
    return alpha


def lora_spectra(folder: str | Path) -> dict[str, np.ndarray]:
    """Return module -> singular values of its update (alpha / r) B A, from an adapter in PEFT's layout.

    ValueError names a folder that holds no plain LoRA of linear layers.
    """
    paths = [Path(folder, name) for name in ("adapter_config.json", "adapter_model.safetensors")]
    spectra = {}
    try:
        if lost := [path.name for path in paths if not path.is_file()]:  # or a pipe; .bin is never opened
            raise ValueError(f"no file {lost[0]}")
        config, weights = json.loads(paths[0].read_text(encoding="utf-8")), load_file(paths[1])
        if config.get("use_dora"):
            raise ValueError("a DoRA adapter, whose update is not B A; save a plain LoRA")
        for name, a in weights.items():
            if name.endswith("lora_A.weight") and a.ndim == 2:
                module, r = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"), len(a)
                b = weights.get(name.replace("lora_A", "lora_B"))
                if not a.numel() or b is None or b.ndim != 2 or b.shape[1] != r or not len(b):
                    raise ValueError(f"{module} has no B and A of one rank above 0")
                if not (a.isfinite().all() and b.isfinite().all()):
                    raise ValueError(f"{module} holds values that are no finite numbers")
                right, left = torch.linalg.qr(a.float().T).R.T, torch.linalg.qr(b.float()).R
                core = left @ right  # [r, r], not [out, in]
                scale = alpha_of(module, config) / (r**0.5 if config.get("use_rslora") else r)
                spectra[module] = scale * torch.linalg.svdvals(core).numpy()
        if not spectra:
            raise ValueError("it has no LoRA matrices of linear layers")
    except Exception as error:  # a folder may hold anything; each library says it differently
        raise ValueError(f"{folder} cannot be read as an adapter: {error}") from error
    return spectra


# %% Score
def effective_rank(values: np.ndarray) -> float:
    """Return exp(entropy of the shares) of singular values (Roy and Vetterli 2007): n where n are equal."""
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0


# %% Spectra
if hasattr(sys.stdout, "reconfigure"):  # a terminal, not a notebook
    sys.stdout.reconfigure(errors="replace")  # one in GBK or cp1252 shows ? for letters it lacks
curves = {}  # title of a panel -> module -> singular values
found = filter(os.path.isfile, glob(f"{ADAPTER}/adapter_model.safetensors"))  # not a dead link
adapters = sorted(found, key=os.path.getmtime)
for path in reversed(adapters):
    if not curves:
        try:
            curves["LoRA update (alpha / r) B A"] = lora_spectra(Path(path).parent)
            print(f"Adapter: {Path(path).parent}")
        except ValueError as error:
            print(f"Left out: {error}")
if not curves:
    print(f"No adapter in {ADAPTER}: run a training script first to see the spectrum of its update")
if Path(MODEL, "config.json").is_file():
    torch.set_num_threads(1)  # in a model this small threads wait longer than they work
    torch.manual_seed(0)
    try:
        Path(OUTPUT).mkdir(parents=True, exist_ok=True)  # what cannot be written is said before the work
        tokenizer = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            MODEL,
            dtype=torch.float32,
            trust_remote_code=False,
        )
        layers = {
            n: m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in n
        }
        batch = tokenizer(list(TEXT), return_tensors="pt", padding=True)
        if not layers or not all(weight.isfinite().all() for weight in model.parameters()):
            raise ValueError("it has no linear layers, or weights that are no finite numbers")
        if batch.input_ids.max() >= model.get_input_embeddings().num_embeddings:
            raise ValueError("its tokenizer has more tokens than the model")
    except Exception as error:  # transformers lets many kinds through
        raise SystemExit(f"MODEL = {MODEL} or OUTPUT = {OUTPUT}: {error}") from error
    before = {name: weight.detach().clone() for name, weight in layers.items()}
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0)
    for _ in range(STEPS):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"{STEPS} steps of full fine-tuning on {len(TEXT)} lines: the last loss is {loss.item():.3f}")
    changes = {name: weight.detach() - before[name] for name, weight in layers.items()}
    curves[f"Full fine-tuning, {STEPS} steps"] = {
        n: torch.linalg.svdvals(w).numpy() for n, w in changes.items()
    }
    curves["The weight itself"] = {n: torch.linalg.svdvals(w).numpy() for n, w in before.items()}
else:
    print(f"No model in {MODEL}: full fine-tuning is left out")

# %% Figure
if not curves:
    raise SystemExit  # nothing to draw, as was said above
plt.rcParams["text.parse_math"] = False  # a $ in a name is no formula
kinds = sorted({module.rpartition(".")[2] for spectra in curves.values() for module in spectra})
colors = {kind: f"C{number % 10}" for number, kind in enumerate(kinds)}
figure, panels = plt.subplots(
    1,
    len(curves),
    figsize=(11, 4.8),
    sharex=True,
    sharey=True,
    squeeze=False,
    layout="constrained",
)
for panel, (title, spectra) in zip(panels[0], curves.items(), strict=True):
    mean = np.mean([effective_rank(values) for values in spectra.values()])
    most = np.mean([len(values) for values in spectra.values()])
    print(f"{title}: effective rank {mean:.1f} of {most:.1f} on average over {len(spectra)} matrices")
    for module, values in spectra.items():
        color = colors[module.rpartition(".")[2]]
        panel.plot(np.arange(1, len(values) + 1), values / (values.max() or 1), color=color, alpha=0.4)
    panel.set(title=f"{title}\neffective rank {mean:.1f} of at most {most:.1f}", xlabel="index")
panels[0, 0].set(xscale="log", yscale="log", ylim=(1e-4, 1.5), ylabel="singular value / largest")
panels[0, 0].xaxis.set_major_formatter("{x:.0f}")
shown = [kind for kind in kinds if len(kind) < 40][:28]
lines = [plt.Line2D([], [], color=colors[kind]) for kind in shown]
figure.legend(lines, shown, loc="outside lower center", ncols=7, title="module")
Path(OUTPUT).mkdir(parents=True, exist_ok=True)
figure.savefig(f"{OUTPUT}/lora.png", dpi=100)
print(f"Wrote {OUTPUT}/lora.png")
