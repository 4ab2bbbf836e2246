"""What goes wrong on real machines: killed processes, full disks, no network, damaged files, numbers that are none."""

import json
import shutil
import signal
import subprocess

import pytest
from conftest import ROOT
from safetensors.torch import load_file

SCRIPT = "sft_alpaca.py"  # what is tested here is the same in all, to the letter where it is a function
SHORT = {"MAX_STEPS": 4, "EVALUATIONS": 4, "EVAL_ROWS": 4, "NEW_TOKENS": 4, "BATCH_SIZE": 2}
TINY = ROOT / "data" / "tiny-qwen2.5"
KILL = "os.kill(os.getpid(), 9)"
FILES = {"lora", "metrics.json", "report.md", "loss.png"}


def outcome(folder) -> tuple[dict, dict, list]:
    """Return the scores of a complete run, its adapter's sums, and the names it left."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    sums = {
        name: w.sum().item() for name, w in load_file(folder / "lora" / "adapter_model.safetensors").items()
    }
    return (
        {name: metrics[name] for name in ("before", "after")},
        sums,
        {path.name for path in folder.iterdir()},
    )


@pytest.fixture(scope="module")
def undisturbed(run_script):
    run = run_script(SCRIPT, **SHORT)
    assert run.status == 0, run.stderr[-2000:]
    return outcome(run.output)


MOMENTS = {  # where SIGKILL comes -> (a line of the script, what stands there instead)
    "before the first step": ("        trainer.train(resume_from_checkpoint=newest)\n", f"        {KILL}\n"),
    "after a step, before its checkpoint": (
        "        if not math.isfinite((logs or {}).get(\"loss\", 0.0)):\n",
        f"        if state.global_step == 1: {KILL}\n        if False:\n",
    ),
    "between saving and renaming": ("saving.rename(adapter)\n", f"{KILL}\n"),
    "while the metrics are written": (
        'write_text(output / "metrics.json"', f'(output / "metrics.json.tmp").write_text("half"); {KILL}\nwrite_text(output / "metrics.json"',
    ),
    "while the checkpoints are removed": (
        "shutil.rmtree(checkpoints, ignore_errors=True)", f"(checkpoints / 'checkpoint-4' / 'optimizer.pt').unlink(); {KILL}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_run_ends_as_if_undisturbed(run_script, undisturbed, tmp_path, moment):
    output = tmp_path / "run"
    killed = run_script(SCRIPT, output, changes=[MOMENTS[moment]], **SHORT)
    assert killed.status == -signal.SIGKILL
    for path in output.glob("*.json"):  # no half file under its name
        json.loads(path.read_text(encoding="utf-8"))
    run = run_script(SCRIPT, output, **SHORT)
    assert run.status == 0, run.stderr[-2000:]
    scores, sums, names = outcome(output)
    assert (scores, sums) == undisturbed[:2] and names - {"metrics.json.tmp"} == FILES


@pytest.mark.parametrize("damage", ["cut off", "missing state", "no zip"])
def test_damaged_checkpoint_falls_back_to_the_one_before(run_script, undisturbed, tmp_path, damage):
    output = tmp_path / "run"
    stop = (MOMENTS["between saving and renaming"],)
    assert run_script(SCRIPT, output, changes=stop, **SHORT).status == -signal.SIGKILL
    checkpoints = next(output.glob("checkpoints-*"))
    newest = checkpoints / "checkpoint-4"
    if damage == "cut off":
        weights = newest / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no zip":
        (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:1000])
    else:
        (newest / "trainer_state.json").unlink()
    run = run_script(SCRIPT, output, **SHORT)
    assert run.status == 0, run.stderr[-2000:]
    assert "checkpoint-4 is damaged" in run.stdout and "Going on from" in run.stdout
    assert outcome(output)[:2] == undisturbed[:2]


def test_full_disk_costs_nothing_that_was_written(run_script, undisturbed, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        full = run_script(SCRIPT, disk / "run", environment={"TMPDIR": "/tmp"}, LORA_R=32, **SHORT)
        assert full.status == 1 and "No space left in" in full.stderr, full.stderr[-2000:]
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        run = run_script(SCRIPT, disk / "run", LORA_R=32, **SHORT)
        assert run.status == 0, run.stderr[-2000:]
        assert outcome(disk / "run") == undisturbed
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_output_that_cannot_be_written_is_said_at_once(run_script, tmp_path):
    (tmp_path / "file").write_text("no folder")
    run = run_script(SCRIPT, environment={"OUTPUT": str(tmp_path / "file" / "run")})
    assert run.status == 1 and run.stderr.strip().splitlines()[-1].startswith(
        "Output: nothing can be written to"
    )
    assert "Traceback" not in run.stderr and "GPU memory" not in run.stdout


def test_interrupted_run_goes_on(run_script, undisturbed, tmp_path):
    output, (line, _) = tmp_path / "run", MOMENTS["after a step, before its checkpoint"]
    handler = (
        "__import__('signal').signal(2, __import__('signal').default_int_handler)"  # a shell's & ignores it
    )
    control_c = f"        if state.global_step == 3: {handler}, os.kill(os.getpid(), 2)\n{line}"
    interrupted = run_script(SCRIPT, output, changes=[(line, control_c)], **SHORT)
    assert interrupted.status not in (0, -signal.SIGKILL) and "KeyboardInterrupt" in interrupted.stderr
    run = run_script(SCRIPT, output, **SHORT)
    assert run.status == 0 and "Going on from" in run.stdout
    assert outcome(output)[:2] == undisturbed[:2]


@pytest.mark.parametrize(
    "script", ["sft_gongwen.py", "sft_alpaca.py", "sft_medical.py", "vl_car_insurance.py"]
)
@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_loss_that_is_no_number_stops_with_a_remedy(functions, script, loss):
    class State:
        global_step = 7

    callback = functions(script).StopOnNaN()
    callback.on_log(None, State, None, {"loss": 1.5})
    callback.on_log(None, State, None, {"eval_loss": 1.5})
    with pytest.raises(SystemExit, match="step 7: halve LEARNING_RATE"):
        callback.on_log(None, State, None, {"loss": loss})


def test_nan_in_a_real_run(run_script):
    run = run_script(SCRIPT, **{**SHORT, "LEARNING_RATE": 1e30})
    assert run.status == 1 and "halve LEARNING_RATE" in run.stderr and not (run.output / "lora").exists()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Return a hub cache that holds the tiny model as someone/tiny and nothing else."""
    folder = tmp_path_factory.mktemp("hub")
    repo = folder / "models--someone--tiny"
    shutil.copytree(TINY, repo / "snapshots" / "0123456789")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123456789")
    return folder


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_network_and_without_cache(run_script, cache, offline):
    environment = {"MODEL": "someone/else", "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": offline}
    run = run_script(SCRIPT, environment=environment | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    last = run.stderr.strip().splitlines()[-1]
    assert run.status == 1 and "Traceback" not in run.stderr, run.stderr[-2000:]
    assert any(
        line.startswith("Model: someone/else is no folder, not in the cache")
        for line in run.stderr.splitlines()
    ), last


def test_without_network_but_with_cache(run_script, cache):
    environment = {"MODEL": "someone/tiny", "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    settings = SHORT | {"MAX_LENGTH": 256, "LOAD_IN_4BIT": False, "GRADIENT_CHECKPOINTING": False}
    run = run_script(SCRIPT, environment=environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}, **settings)
    assert run.status == 0, run.stderr[-2000:]
    assert json.loads((run.output / "metrics.json").read_text())["model"] == "someone/tiny"
