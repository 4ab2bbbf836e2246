# %% [markdown]
"""
# A photograph as a sum of rank-one matrices

Cuts the singular value decomposition of each colour channel after k terms, the best rank-k picture there is
(Eckart-Young), and measures what is lost. lora_spectra.py draws the same spectrum for the weights of a model.

Run:    `uv run image_svd/image_svd.py`; `DATA=photo.jpg uv run image_svd/image_svd.py` for your own picture
Data:   any picture Pillow reads (chelsea.png is CC0)
Writes: `outputs/image_svd/svd.png`
"""

# %% Imports
import os
import sys
from bisect import bisect_left
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageOps
from skimage.metrics import structural_similarity
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

# %% Settings
DATA = os.getenv("DATA") or "image_svd/chelsea.png"
OUTPUT = os.getenv("OUTPUT") or "outputs/image_svd"

RANKS = (1, 2, 5, 10, 20, 40, 60, 100, 150, 200, 300)
TARGETS = (30, 35, 40)  # dB
MAX_PIXELS = 50_000_000  # a larger file is refused: it may be a decompression bomb
SWEEP_PIXELS = 1_000_000  # larger pictures are scaled down for the sweep


# %% Data
def read_image(path: str | Path) -> np.ndarray:
    """Return a picture, upright, uint8 [rows, columns] or [rows, columns, 3]; ValueError names a bad file."""
    try:
        if not Path(path).is_file():
            raise ValueError("it is no file")
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"it has {image.width} x {image.height} pixels; raise MAX_PIXELS if you trust it"
                )
            if min(image.size) < 8:
                raise ValueError(f"it has {image.width} x {image.height} pixels; 8 x 8 is the least")
            if image.format == "EPS":  # decoding it would start another program
                raise ValueError("it is a drawing; save it as PNG")
            if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a photo and its preview
                print(f"{path}: only the first of its pages is used")
            image = ImageOps.exif_transpose(image)
            if image.mode[0] in "IF":  # 16 bits or more: Pillow would cut at 255
                values = np.asarray(image, "float64")
                if not np.isfinite(values).all():
                    raise ValueError("some of its pixels are no finite numbers")
                image = Image.fromarray(
                    (255 * (values - values.min()) / (np.ptp(values) or 1)).astype("uint8")
                )
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except Exception as error:  # Pillow's readers let many kinds through
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


# %% Sweep over k
if hasattr(sys.stdout, "reconfigure"):  # a terminal, not a notebook
    sys.stdout.reconfigure(errors="replace")  # one in GBK or cp1252 shows ? for letters it lacks
try:
    image = read_image(DATA)
    Path(OUTPUT).mkdir(parents=True, exist_ok=True)
    open(f"{OUTPUT}/svd.png", "ab").close()  # what cannot be written is said before the work
    if not all(isinstance(k, int) and k > 0 for k in RANKS):
        raise ValueError(f"{RANKS = } has to hold whole numbers above 0")
except (OSError, ValueError) as error:
    raise SystemExit(f"DATA, OUTPUT or RANKS: {error}") from error
rows, columns = image.shape[:2]
if rows * columns > SWEEP_PIXELS:
    scale = (SWEEP_PIXELS / (rows * columns)) ** 0.5
    size = max(8, round(scale * columns)), max(8, round(scale * rows))
    image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
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

# %% Figure
figure = plt.figure(figsize=(11, 6.4), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=(2, 3))
shown = [ranks.index(k) for k in (5, 20, 60, 150) if k in ranks]
for panel, i in zip(above.subplots(1, len(shown) + 1, squeeze=False)[0], [*shown, None], strict=True):
    panel.imshow((image if i is None else pictures[i]) / 255, cmap="gray", vmin=0, vmax=1)
    if max(rows, columns) > 4 * full:  # a strip is stretched, or nothing of it would be seen
        panel.set_aspect("auto")
    title = (
        f"original\n{columns} x {rows}"
        if i is None
        else f"k = {ranks[i]}: {decibels[i]:.1f} dB\n{shares[i]:.0%} stored"
    )
    panel.set(title=title, xticks=[], yticks=[])
left, middle, right = below.subplots(1, 3)
colors = ("red", "green", "blue") if len(factors) == 3 else ("gray",)
for (_, s, _), color in zip(factors, colors, strict=True):
    left.semilogy(np.arange(1, full + 1), np.maximum(s, 1e-3), color=color, label=color)
left.set(title="Singular values", xlabel="index", ylabel="singular value")
left.legend()
middle.plot(ranks, decibels, marker=".")
for target, k in smallest.items():
    middle.axhline(target, color="gray", linewidth=0.5)
    middle.plot(k, target, "ko", label=f"{target} dB: k = {k}")
middle.set(title="What is left of it", xlabel="k", ylabel="PSNR / dB")
middle.legend(title="smallest k for")
right.plot(ranks, similar, marker=".", color="tab:orange", label="SSIM (1: equal)")
right.plot(ranks, shares, marker=".", color="tab:green", label="numbers stored")
right.axhline(1, color="gray", linewidth=0.5)
right.set(title="Likeness and its price", xlabel="k", ylabel="share")
right.legend()
figure.savefig(f"{OUTPUT}/svd.png", dpi=100)
print(f"Wrote {OUTPUT}/svd.png")
