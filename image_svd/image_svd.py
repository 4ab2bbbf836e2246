# %% [markdown]
"""
# A photograph and a LoRA update as sums of rank-one matrices

Cuts the singular value decomposition of each colour channel after k terms, the best rank-k picture there is
(Eckart-Young), and measures what is lost. Then the same spectrum for neural weights: the update that a LoRA
adapter learnt, of rank r at most, beside what full fine-tuning changes. The weight keeps its full rank.

Run:    `uv run image_svd/image_svd.py`; `DATA=photo.jpg uv run image_svd/image_svd.py` for your own picture
Data:   any picture Pillow reads (chelsea.png is CC0); adapters that the training scripts saved
Writes: `outputs/image_svd/` (svd.png; lora.png where a model or an adapter is found)
"""

# %% Imports
import json
import os
import re
from bisect import bisect_left
from glob import glob
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from safetensors.torch import load_file
from skimage.metrics import structural_similarity
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits
from transformers import AutoModelForCausalLM, AutoTokenizer

# %% Settings
DATA = os.getenv("DATA", "image_svd/chelsea.png")
MODEL = os.getenv(
    "MODEL", "data/tiny-qwen2.5"
)  # fully fine-tuned for a few steps; small: it is trained on the CPU
OUTPUT = os.getenv("OUTPUT", "outputs/image_svd")
ADAPTER = "outputs/*/lora"  # folders of adapters, as a pattern; the newest is drawn

RANKS = (1, 2, 5, 10, 20, 40, 60, 100, 150, 200, 300)
TARGETS = (30, 35, 40)  # dB
MAX_PIXELS = 50_000_000  # a larger file is refused: it may be a decompression bomb
MAX_SIDE = 1024  # pixels; larger pictures are scaled down for the sweep
STEPS = 20  # of full fine-tuning on TEXT
LEARNING_RATE = 1e-4
TEXT = (
    "Low rank is a property of the change, not of the weight.",
    "A photograph needs few terms where it is smooth, and many where there is fur.",
    "Two thin matrices are trained; the large one stays as it was.",
    "After merging, the weight has the same shape and, as before, full rank.",
)


# %% Data
def read_image(path: str | Path) -> np.ndarray:
    """Return a picture, upright, uint8 [rows, columns] or [rows, columns, 3]; ValueError names a bad file."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"it has {image.width} x {image.height} pixels; raise MAX_PIXELS if you trust it"
                )
            if min(image.size) < 8:
                raise ValueError(f"it has {image.width} x {image.height} pixels; 8 x 8 is the least")
            image = ImageOps.exif_transpose(image)
            if image.mode[0] in "IF":  # 16 bits or more: Pillow would cut at 255
                values = np.asarray(image, "float64")
                image = Image.fromarray(
                    (255 * (values - values.min()) / (np.ptp(values) or 1)).astype("uint8")
                )
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be used as a picture: {error}") from error


# %% Score
def truncated_svd(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return U [m, k], the k largest singular values, V^T [k, n]; randomized if k is small and m, n large."""
    if 10 * k <= min(matrix.shape) >= 500:
        with threadpool_limits(1, "blas"):  # panels of k columns are too narrow for threads
            options = {"n_iter": 4, "power_iteration_normalizer": "QR", "random_state": 0}
            return randomized_svd(matrix.astype("float32"), k, **options)
    u, s, vt = np.linalg.svd(matrix.astype("float64"), full_matrices=False)
    return u[:, :k], s[:k], vt[:k]


def rebuild(factors: list, k: int, image: np.ndarray) -> np.ndarray:
    """Return the sum of the first k terms of each channel, clipped to the picture's range, as float64."""
    channels = [(u[:, :k] * s[:k]) @ vt[:k] for u, s, vt in factors]
    low, high = (0, np.iinfo(image.dtype).max) if image.dtype.kind == "u" else (image.min(), image.max())
    return np.clip(np.stack(channels, axis=-1).reshape(image.shape), low, high, dtype="float64")


def compress(image: np.ndarray, k: int) -> np.ndarray:
    """Return the best rank-k picture by channel, as float64; ValueError for a k that is out of range."""
    if image.ndim not in (2, 3) or not 1 <= k <= min(image.shape[:2]):
        raise ValueError(f"k = {k} with a picture of shape {image.shape}: k goes from 1 to the shorter side")
    channels = np.atleast_3d(image).transpose(2, 0, 1)
    return rebuild([truncated_svd(channel, k) for channel in channels], k, image)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB of pictures with values in 0..255, inf if equal."""
    if a.shape != b.shape:
        raise ValueError(f"pictures of shapes {a.shape} and {b.shape} cannot be compared")
    error = np.mean((a.astype("float64") - b) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def lora_spectra(folder: str | Path) -> dict[str, np.ndarray]:
    """Return module -> singular values of its update (alpha / r) B A, from an adapter in PEFT's layout."""
    config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("use_dora"):
        raise ValueError(f"{folder} is a DoRA adapter, whose update is not B A; save a plain LoRA")
    weights, spectra = load_file(Path(folder) / "adapter_model.safetensors"), {}
    for name, a in weights.items():
        if name.endswith("lora_A.weight") and a.ndim == 2:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            own = (config.get("alpha_pattern") or {}).items()  # some modules may have an alpha of their own
            alpha = next((v for k, v in own if re.search(rf"(^|\.){k}$", module)), config["lora_alpha"])
            r = len(a)
            b = weights[name.replace("lora_A", "lora_B")]
            core = torch.linalg.qr(b.float()).R @ torch.linalg.qr(a.float().T).R.T  # [r, r], not [out, in]
            scale = alpha / (r**0.5 if config.get("use_rslora") else r)
            spectra[module] = scale * torch.linalg.svdvals(core).numpy()
    return spectra


def effective_rank(values: np.ndarray) -> float:
    """Return exp(entropy of the shares) of singular values (Roy and Vetterli 2007): n where n are equal."""
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0


# %% Sweep over k
image = read_image(DATA)
if max(image.shape) > MAX_SIDE:
    image = np.asarray(ImageOps.contain(Image.fromarray(image), (MAX_SIDE, MAX_SIDE)))
rows, columns = image.shape[:2]
full = min(rows, columns)
factors = [truncated_svd(channel, full) for channel in np.atleast_3d(image).transpose(2, 0, 1)]
ranks = [k for k in RANKS if k < full]
pictures = [rebuild(factors, k, image) for k in ranks]
decibels = [psnr(image, picture) for picture in pictures]
axis = 2 if image.ndim == 3 else None
similar = [structural_similarity(image, p, data_range=255, channel_axis=axis) for p in pictures]
shares = [k * (rows + columns + 1) / (rows * columns) for k in ranks]
print(f"{DATA}: {columns} x {rows}; k, PSNR / dB, SSIM, share of the numbers stored")
for row in zip(ranks, decibels, similar, shares, strict=True):
    print("{:5d} {:6.2f} {:6.3f} {:7.1%}".format(*row))
smallest = {
    t: 1 + bisect_left(range(1, full), t, key=lambda k: psnr(image, rebuild(factors, k, image)))
    for t in TARGETS
}
print("Smallest k: " + ", ".join(f"{k} for {target} dB" for target, k in smallest.items()))

figure = Figure((14, 7), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=(2, 3))
shown = [ranks.index(k) for k in (5, 20, 60, 150) if k in ranks]
for panel, i in zip(above.subplots(1, len(shown) + 1), [*shown, None], strict=True):
    panel.imshow((image if i is None else pictures[i]) / 255, cmap="gray", vmin=0, vmax=1)
    title = (
        f"original, rank {full}"
        if i is None
        else f"k = {ranks[i]}: {decibels[i]:.1f} dB, {shares[i]:.0%} stored"
    )
    panel.set(title=title, xticks=[], yticks=[])
left, middle, right = below.subplots(1, 3)
for (_, s, _), name in zip(
    factors, ("red", "green", "blue") if len(factors) == 3 else ("gray",), strict=True
):
    left.semilogy(np.arange(1, full + 1), s, color=name)
left.set(title="Singular values by channel", xlabel="index", ylabel="singular value")
middle.plot(ranks, decibels, marker=".", label="PSNR / dB")
for target, k in smallest.items():
    middle.plot(k, target, "k+", markersize=10)
    middle.annotate(f"  {target} dB: k = {k}", (k, target), va="top")
twin = middle.twinx()
twin.plot(ranks, similar, color="tab:orange", marker=".", label="SSIM")
middle.set(title="Quality", xlabel="k", ylabel="PSNR / dB (blue)")
twin.set(ylabel="SSIM (orange)", ylim=(0, 1.02))
right.plot(ranks, shares, marker=".", color="tab:green")
right.axhline(1, color="gray", linestyle=":")
right.set(title="Numbers stored: k (m + n + 1) / (m n)", xlabel="k", ylabel="share of the picture's")
Path(OUTPUT).mkdir(parents=True, exist_ok=True)
figure.savefig(f"{OUTPUT}/svd.tmp", format="png", dpi=100)
os.replace(f"{OUTPUT}/svd.tmp", f"{OUTPUT}/svd.png")

# %% The same for weights
curves = {}  # title of a panel -> module -> singular values
adapters = sorted(glob(f"{ADAPTER}/adapter_model.safetensors"), key=os.path.getmtime)
if adapters:
    curves["LoRA update (alpha / r) B A"] = lora_spectra(Path(adapters[-1]).parent)
else:
    print(f"No adapter in {ADAPTER}: run a training script first to see the spectrum of its update")
if Path(MODEL, "config.json").exists():
    torch.set_num_threads(1)  # in a model this small threads wait longer than they work
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    layers = {
        n: m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in n
    }
    before = {name: weight.detach().clone() for name, weight in layers.items()}
    batch = tokenizer(list(TEXT), return_tensors="pt", padding=True)
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
if curves:
    figure = Figure((4.5 * len(curves), 4.2), layout="constrained")
    for panel, (title, spectra) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        mean = np.mean([effective_rank(values) for values in spectra.values()])
        print(f"{title}: effective rank {mean:.1f} on average over {len(spectra)} matrices")
        for values in spectra.values():
            panel.semilogy(
                np.arange(1, len(values) + 1), values / (values.max() or 1), color="tab:blue", alpha=0.25
            )
        panel.set(title=f"{title}\nmean effective rank {mean:.1f}", xlabel="index", ylim=(1e-4, 1.5))
        panel.set_ylabel("singular value / largest")
    figure.savefig(f"{OUTPUT}/lora.tmp", format="png", dpi=100)
    os.replace(f"{OUTPUT}/lora.tmp", f"{OUTPUT}/lora.png")
print(f"Wrote the figures to {OUTPUT}")
