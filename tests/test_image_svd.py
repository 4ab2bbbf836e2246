"""image_svd: numbers of a truncated SVD, odd pictures, spectra of adapters, the whole scripts."""

import contextlib
import io
import json
import os
import random
import re
import signal
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

SCRIPT, SPECTRA = "image_svd/image_svd.py", "image_svd/lora_spectra.py"


@pytest.fixture(scope="module")
def svd(functions):
    return functions(SCRIPT)


@pytest.fixture(scope="module")
def spectra(functions):
    return functions(SPECTRA)


@contextlib.contextmanager
def time_limit(seconds):
    """Raise TimeoutError in what takes longer."""

    def stop(*_):
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_cells(script, until=None, **constants):
    """Run a script in this process up to a cell; return (its last line or None, what it printed, its names)."""
    source = (ROOT / script).read_text(encoding="utf-8")
    for name, value in constants.items():
        source, count = re.subn(rf"(?m)^{name} = .*$", lambda _, n=name, v=value: f"{n} = {v!r}", source)
        assert count == 1, name
    source = source[: source.index(f"# %% {until}")] if until else source
    space, ended, printed = {"__name__": "__main__"}, None, io.StringIO()
    with time_limit(60), contextlib.redirect_stdout(printed):
        try:
            exec(compile(source, script, "exec"), space)
        except SystemExit as stop:
            ended = str(stop)
        finally:
            plt.close("all")
    return ended, printed.getvalue(), space


def picture(rows, columns, seed=0, low=64, high=192, channels=None):
    """Return noise around a smooth slope, uint8, far enough from 0 and 255 that nothing is clipped."""
    rng = np.random.default_rng(seed)
    shape = (rows, columns) if channels is None else (rows, columns, channels)
    return rng.integers(low, high, shape).astype("uint8")


@pytest.mark.parametrize("k", [1, 7, 39, 40])
def test_error_is_the_tail_of_the_singular_values(svd, k):
    image = picture(40, 60)
    values = np.linalg.svd(image.astype(float), compute_uv=False)
    error = np.sum((svd.compress(image, k) - image) ** 2)
    assert error == pytest.approx(np.sum(values[k:] ** 2), rel=1e-9, abs=1e-6)


def test_each_channel_is_compressed_on_its_own(svd):
    image = picture(30, 20, channels=3)
    together = svd.compress(image, 4)
    assert together.shape == image.shape
    for channel in range(3):
        assert np.allclose(together[..., channel], svd.compress(image[..., channel], 4))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 999))
def test_rank_range_and_falling_error(svd, rows, columns, seed):
    image = picture(rows, columns, seed, 0, 256)
    results = [svd.compress(image, k) for k in range(1, min(rows, columns) + 1)]
    errors = [np.sum((result - image) ** 2) for result in results]
    values = np.linalg.svd(image.astype(float), compute_uv=False)
    for k, (result, error) in enumerate(zip(results, errors, strict=True), 1):
        assert result.min() >= 0 and result.max() <= 255
        assert error <= np.sum(values[k:] ** 2) + 1e-6  # clipping only brings it nearer
    assert np.allclose(results[-1], image)


@pytest.mark.parametrize("k", [0, -1, 21, 1000])
def test_rank_out_of_range_is_refused(svd, k):
    with pytest.raises(ValueError, match=f"k = {k}"):
        svd.compress(picture(20, 30), k)


def test_psnr(svd):
    black = np.zeros((4, 4), "uint8")
    assert svd.psnr(black, black) == float("inf")
    assert svd.psnr(black, black + 255) == pytest.approx(0)
    assert svd.psnr(black, black + 16) == pytest.approx(20 * np.log10(255 / 16))
    with pytest.raises(ValueError, match="shapes"):
        svd.psnr(black, black[:2])


def test_randomized_is_as_good_and_much_faster(svd):
    rows = np.arange(1000)[:, None]
    rng = np.random.default_rng(0)
    image = 128 + 40 * np.sin(rows / 90) * np.cos(np.arange(1200) / 130) + rng.normal(0, 8, (1000, 1200))
    image = np.clip(image, 0, 255).astype("uint8")
    start = time.process_time()
    fast = svd.compress(image, 50)
    middle = time.process_time()
    u, s, vt = np.linalg.svd(image.astype(float), full_matrices=False)
    full = time.process_time() - middle
    exact = np.clip((u[:, :50] * s[:50]) @ vt[:50], 0, 255)
    assert svd.psnr(image, fast) > svd.psnr(image, exact) - 0.1
    assert full > 4 * (middle - start)


def test_pictures_of_any_mode(svd, tmp_path):
    grey = picture(20, 30)
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"):
        values = Image.fromarray(grey)
        image = values.convert("I").convert(mode) if mode == "I;16" else values.convert(mode)
        path = tmp_path / ("a.tif" if mode in ("PA", "CMYK", "I", "F", "I;16", "HSV") else "a.png")
        path = (
            path.with_suffix(".jpg") if mode == "YCbCr" else path
        )  # Pillow 12 cannot read its own YCbCr TIFF
        try:
            image.save(path)
        except (OSError, KeyError):
            continue  # no file format of Pillow's keeps this mode
        read = svd.read_image(path)
        assert read.dtype == np.uint8 and read.shape[:2] == (20, 30) and read.ndim in (2, 3), mode


def test_sixteen_bits_keep_their_contrast(svd, tmp_path):
    ramp = (np.arange(16 * 16).reshape(16, 16) * 257).astype("uint16")
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert np.array_equal(svd.read_image(tmp_path / "ramp.png"), (ramp // 257).astype("uint8"))


def test_exif_rotation_is_applied(svd, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(picture(20, 30)).save(tmp_path / "a.png", exif=exif)
    assert svd.read_image(tmp_path / "a.png").shape == (30, 20)


def noise(*shape, dtype="uint8", top=255):
    """Return random values of a shape."""
    return np.random.default_rng(0).integers(0, top, shape).astype(dtype)


PICTURES = {  # name -> (a picture, how it is saved), each of which gives a result
    "strip.png": (noise(30, 9000, 3), {}),
    "tall.png": (noise(3000, 40, 3), {}),
    "8x8.png": (noise(8, 8), {}),
    "long8.png": (noise(8, 50_000), {}),
    "black.png": (np.zeros((64, 64, 3), "uint8"), {}),
    "white.png": (np.full((64, 64), 255, "uint8"), {}),
    "one_colour.bmp": (np.full((20, 90, 3), 7, "uint8"), {}),
    "sixteen.png": (noise(64, 64, dtype="uint16", top=65535), {}),
    "float.tif": (noise(40, 50).astype("float32") * 1e6, {}),
    "rgba.png": (noise(50, 40, 4), {}),
    "grey_alpha.png": (noise(40, 50, 2), {}),
    "photo.webp": (noise(60, 60, 3), {}),
    "photo.jp2": (noise(60, 60, 3), {}),
    "photo.gif": (noise(60, 60), {}),
    "named_wrongly.txt": (noise(60, 60, 3), {"format": "JPEG"}),
    "cmyk.jpg": (noise(64, 64, 4), {"mode": "CMYK"}),
    "one_bit.png": (noise(64, 64) > 127, {}),
    "$x^{ 猫.png": (noise(30, 30), {}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_odd_pictures_give_a_result(tmp_path, name):
    values, how = PICTURES[name]
    image = (
        Image.fromarray(values)
        if "mode" not in how
        else Image.frombytes(how["mode"], (64, 64), values.tobytes())
    )
    image.save(tmp_path / name, **({"format": how["format"]} if "format" in how else {}))
    ended, printed, space = run_cells(SCRIPT, DATA=str(tmp_path / name), OUTPUT=str(tmp_path / "out"))
    assert ended is None, ended
    rows, columns = space["image"].shape[:2]
    assert rows * columns <= 1.3 * space["SWEEP_PIXELS"] and min(rows, columns) >= 8
    decibels = [min(value, 100) for value in space["decibels"]]  # above it is rounding
    assert all(a <= b + 1e-9 for a, b in zip(decibels, decibels[1:], strict=False))
    assert "Smallest k:" in printed and [file.name for file in (tmp_path / "out").iterdir()] == ["svd.png"]
    with Image.open(tmp_path / "out" / "svd.png") as figure:
        assert min(figure.size) > 500


def nan_picture():
    values = np.ones((20, 20), "float32")
    values[3, 4] = np.nan
    return Image.fromarray(values)


def saved(image, form, cut=None):
    """Return the bytes of a picture, the last ones cut off."""
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()[:cut]


BAD = {  # name -> its bytes; a word of what is said
    "text.png": (b"no picture", "cannot"),
    "empty.png": (b"", "cannot"),
    "nul.png": (b"\0" * 4000, "cannot"),
    "cut.jpg": (saved(Image.fromarray(noise(90, 90, 3)), "JPEG", -2000), "cannot"),
    "cut.png": (saved(Image.fromarray(noise(90, 90, 3)), "PNG", -2000), "cannot"),
    "signature.png": (b"\x89PNG\r\n\x1a\n", "cannot"),
    "page.jpg": (b"<html>404</html>", "cannot"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot"),
    "small.png": (saved(Image.fromarray(noise(4, 400)), "PNG"), "8 x 8"),
    "large.png": (saved(Image.new("1", (9000, 9000)), "PNG"), "MAX_PIXELS"),
    "bomb.png": (saved(Image.new("1", (20000, 20000)), "PNG"), "exceeds limit"),
    "nan.tif": (saved(nan_picture(), "TIFF"), "no finite numbers"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_named_in_one_line(tmp_path, name):
    content, word = BAD[name]
    (tmp_path / name).write_bytes(content)
    ended, _, space = run_cells(SCRIPT, DATA=str(tmp_path / name), OUTPUT=str(tmp_path / "out"))
    assert name in ended and word in ended and "\n" not in ended and "image" not in space


@pytest.mark.parametrize("name", ["folder", "fifo", "/dev/zero", "missing"])
def test_only_a_regular_file_is_opened(tmp_path, name):
    path = tmp_path / "picture.png"
    if name == "folder":
        path.mkdir()
    elif name == "fifo":
        os.mkfifo(path)
    path = name if name.startswith("/dev") else str(path)
    ended, _, _ = run_cells(SCRIPT, DATA=path, OUTPUT=str(tmp_path / "out"))
    assert path in ended and "no file" in ended


def test_an_output_that_cannot_be_written_is_said_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    ended, _, space = run_cells(SCRIPT, OUTPUT=str(tmp_path / "file"))
    assert str(tmp_path / "file") in ended and "factors" not in space


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "form", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM", "TGA", "ICO", "JPEG2000", "DDS"]
)
def test_damaged_pictures_are_read_or_named(svd, tmp_path, form):
    whole, chance, path = (
        saved(Image.fromarray(noise(20, 30, 3)), form),
        random.Random(0),
        tmp_path / "picture",
    )
    for _ in range(40):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            content[chance.randrange(min(len(content), 200))] = chance.randrange(256)
        path.write_bytes(content[: chance.choice([None, None, chance.randrange(1, len(content))])])
        try:
            with time_limit(10):
                image = svd.read_image(path)
            assert image.dtype == np.uint8 and min(image.shape[:2]) >= 8
        except ValueError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(("rslora", "pattern"), [(False, {}), (True, {}), (False, {"1.up": 32})])
def test_spectra_equal_those_of_the_product(spectra, tmp_path, rslora, pattern):
    rng = np.random.default_rng(0)
    config = {"r": 4, "lora_alpha": 8, "use_rslora": rslora, "alpha_pattern": pattern}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors, products = {}, {}
    for module, out, size in (("layers.0.up", 30, 20), ("layers.1.up", 3, 50)):
        a, b = (rng.normal(size=shape).astype("float32") for shape in ((4, size), (out, 4)))
        tensors |= {
            f"base_model.model.{module}.lora_A.weight": a,
            f"base_model.model.{module}.lora_B.weight": b,
        }
        alpha = 32 if pattern and "1.up" in module else 8
        products[module] = alpha / (2 if rslora else 4) * b @ a
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    found = spectra.lora_spectra(tmp_path)
    assert found.keys() == products.keys()
    for module, product in products.items():
        count = min(4, *product.shape)
        expected = np.linalg.svd(product, compute_uv=False)[:count]
        assert np.allclose(found[module][:count], expected, rtol=1e-4)
        assert np.allclose(found[module][count:], 0, atol=1e-4)


def test_effective_rank(spectra):
    assert spectra.effective_rank(np.ones(7)) == pytest.approx(7)
    assert spectra.effective_rank(np.array([3.0, 0, 0])) == pytest.approx(1)
    assert spectra.effective_rank(np.zeros(3)) == 0
    assert 1 < spectra.effective_rank(np.array([3.0, 1.0])) < 2


def save_adapter(folder, config, tensors):
    """Write an adapter in PEFT's layout."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def lora(size=32, r=2, module="model.layers.0.self_attn.q_proj"):
    name = f"base_model.model.{module}.lora_{{}}.weight"
    return {
        name.format("A"): np.eye(r, size, dtype="float32"),
        name.format("B"): np.eye(size, r, dtype="float32"),
    }


@pytest.mark.parametrize("kind", ["dora", "cut off", "no config", "bad config", "no matrices"])
def test_an_adapter_that_cannot_be_drawn_is_named(spectra, tmp_path, kind):
    config = {"r": 2, "lora_alpha": 4, "use_dora": kind == "dora"}
    tensors = (
        lora() if kind != "no matrices" else {"base_model.model.lm_head.weight": np.eye(2, dtype="float32")}
    )
    folder = save_adapter(tmp_path / "lora", config, tensors)
    weights = folder / "adapter_model.safetensors"
    if kind == "cut off":
        weights.write_bytes(weights.read_bytes()[:-20])
    elif kind == "no config":
        (folder / "adapter_config.json").unlink()
    elif kind == "bad config":
        (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        spectra.lora_spectra(folder)


def test_the_script_runs_and_reports(tmp_path):
    start = time.time()
    ended, printed, _ = run_cells(SCRIPT, OUTPUT=str(tmp_path))
    assert ended is None and time.time() - start < 60
    decibels = [float(line.split()[1]) for line in printed.splitlines() if line.strip()[:1].isdigit()]
    assert decibels == sorted(decibels) and decibels[-1] > 45
    assert "Smallest k: 26 for 30 dB, 60 for 35 dB, 105 for 40 dB" in printed
    with Image.open(tmp_path / "svd.png") as figure:
        assert min(figure.size) > 500


def test_without_model_and_adapter_a_line_says_so(tmp_path):
    ended, printed, _ = run_cells(
        SPECTRA, MODEL=str(tmp_path), ADAPTER=str(tmp_path / "*"), OUTPUT=str(tmp_path / "out")
    )
    assert not ended and "No adapter" in printed and "No model" in printed
    assert not (tmp_path / "out").exists()


def test_full_fine_tuning_is_drawn_beside_the_newest_adapter_that_can_be_read(tmp_path):
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny-qwen2.5")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **size)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for number, name in enumerate(("gongwen", "r1", "medical")):  # as the training scripts save them
        folder = save_adapter(
            tmp_path / "outputs" / name / "lora", {"r": 2, "lora_alpha": 4, "use_dora": number == 2}, lora()
        )
        os.utime(folder / "adapter_model.safetensors", (number, number))
    ended, printed, space = run_cells(
        SPECTRA,
        MODEL=str(tmp_path / "model"),
        ADAPTER=str(tmp_path / "outputs" / "*" / "lora"),
        OUTPUT=str(tmp_path / "out"),
        STEPS=2,
    )
    assert ended is None, ended
    assert "DoRA" in printed and f"Adapter: {tmp_path / 'outputs' / 'r1' / 'lora'}" in printed
    assert "LoRA update (alpha / r) B A: effective rank 2.0 of 2.0 on average over 1 matrices" in printed
    assert "Full fine-tuning, 2 steps: effective rank" in printed
    panels = space["panels"][0]
    assert len(panels) == 3 and len({panel.get_xlim() for panel in panels}) == 1  # one x axis
    key = [text.get_text() for text in space["figure"].legends[0].get_texts()]
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} <= set(key)
    assert (tmp_path / "out" / "lora.png").exists()


def test_a_folder_that_is_no_model_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    ended, _, _ = run_cells(
        SPECTRA, MODEL=str(tmp_path), ADAPTER=str(tmp_path / "*"), OUTPUT=str(tmp_path / "out")
    )
    assert str(tmp_path) in ended
