"""image_svd: numbers of a truncated SVD, pictures it takes, spectra of adapters, the whole script."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
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
    rows = np.arange(1500)[:, None]
    rng = np.random.default_rng(0)
    image = 128 + 40 * np.sin(rows / 90) * np.cos(np.arange(2000) / 130) + rng.normal(0, 8, (1500, 2000))
    image = np.clip(image, 0, 255).astype("uint8")
    start = time.perf_counter()
    fast = svd.compress(image, 50)
    middle = time.perf_counter()
    u, s, vt = np.linalg.svd(image.astype(float), full_matrices=False)
    exact = np.clip((u[:, :50] * s[:50]) @ vt[:50], 0, 255)
    full = time.perf_counter() - middle
    assert svd.psnr(image, fast) > svd.psnr(image, exact) - 0.1
    assert full > 4 * (middle - start)  # 8 is the aim at 4000 x 3000; a busy machine needs room


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


def test_a_bad_picture_is_named(svd, tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(picture(40, 40)).save(tmp_path / "large.png")
    Image.fromarray(picture(4, 40)).save(tmp_path / "small.png")
    monkeypatch.setattr(svd, "MAX_PIXELS", 1000)
    for name, message in (
        ("text", "cannot"),
        ("large", "MAX_PIXELS"),
        ("small", "8 x 8"),
        ("none", "none.png"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            svd.read_image(tmp_path / f"{name}.png")
        assert f"{name}.png" in str(caught.value)


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


def test_the_script_runs_and_reports(run_script):
    run = run_script(SCRIPT)
    assert run.status == 0, run.stderr[-2000:]
    assert run.seconds < 60
    decibels = [float(line.split()[1]) for line in run.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert decibels == sorted(decibels) and decibels[-1] > 45
    assert "Smallest k: 26 for 30 dB, 60 for 35 dB, 105 for 40 dB" in run.stdout
    with Image.open(run.output / "svd.png") as figure:
        assert min(figure.size) > 500
    assert not list(run.output.glob("*.tmp"))


def test_without_model_and_adapter_a_line_says_so(run_script, tmp_path):
    run = run_script(SPECTRA, environment={"MODEL": str(tmp_path)}, ADAPTER=str(tmp_path / "*"))
    assert run.status == 0 and "No adapter" in run.stdout and "No model" in run.stdout
    assert not run.output.exists()


def test_full_fine_tuning_is_drawn_beside_an_adapter(run_script, tmp_path):
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tiny = Path(__file__).resolve().parent.parent / "data" / "tiny-qwen2.5"
    if not tiny.exists():
        pytest.skip("data/tiny-qwen2.5 has not been built: its tokenizer is needed")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **size)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    adapter = tmp_path / "any" / "lora"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    name = "base_model.model.layers.0.q_proj.lora_{}.weight"
    tensors = {
        name.format("A"): np.eye(2, 32, dtype="float32"),
        name.format("B"): np.eye(32, 2, dtype="float32"),
    }
    save_file(tensors, adapter / "adapter_model.safetensors")
    run = run_script(SPECTRA, environment={"MODEL": str(tmp_path / "model")}, ADAPTER=str(adapter), STEPS=2)
    assert run.status == 0, run.stderr[-2000:]
    assert "LoRA update (alpha / r) B A: effective rank 2.0 on average over 1 matrices" in run.stdout
    assert "Full fine-tuning, 2 steps: effective rank" in run.stdout
    assert (run.output / "lora.png").exists()
