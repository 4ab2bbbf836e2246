"""Run a script's GPU path without a GPU: `uv run tests/simulated_cuda.py sft_gongwen.py`.

PyTorch is made to report one CUDA device of 12 GB whose tensors live in main memory (capability 8.9; with
SIMULATED_CAPABILITY=7.5 a T4, which has no bfloat16); Triton kernels run in Triton's interpreter. Unsloth then takes
the path that a real card takes: FastLanguageModel, FastVisionModel, its rewritten trainers, its collator and its
kernels. Each kernel is interpreted, so give it a model of two layers, short rows and a step or two. It shows that calls, data and shapes are right. It shows nothing about speed, memory,
vLLM, xformers or the card's own arithmetic, and only float32 is to be judged: interpreted bfloat16 gradients are NaN.
"""

import contextlib
import os
import runpy
import sys
import types

os.environ.update(TRITON_INTERPRET="1", UNSLOTH_COMPILE_DISABLE="1", TORCHDYNAMO_DISABLE="1")
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # the redirection below holds for the thread that installs it
sys.modules["xformers"] = None  # it refuses tensors in main memory; Unsloth falls back to PyTorch's attention

import torch  # noqa: E402
import triton.language as tl  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

CAPABILITY = tuple(map(int, os.getenv("SIMULATED_CAPABILITY", "8.9").split(".")))
PROPERTIES = types.SimpleNamespace(
    name="simulated", major=CAPABILITY[0], minor=CAPABILITY[1], total_memory=12 * 2**30, multi_processor_count=46, warp_size=32,
    max_threads_per_multi_processor=1536, regs_per_multiprocessor=65536, shared_memory_per_multiprocessor=102400,
    gcnArchName="",
)  # fmt: skip
ANSWERS = {  # torch.cuda function -> what it returns
    "is_available": True, "is_initialized": True, "is_bf16_supported": CAPABILITY >= (8, 0), "_is_compiled": True,
    "device_count": 1, "current_device": 0, "get_device_name": "simulated", "get_device_properties": PROPERTIES,
    "get_device_capability": CAPABILITY, "mem_get_info": (10 * 2**30, 12 * 2**30),
    "is_current_stream_capturing": False, "memory_reserved": 0, "max_memory_reserved": 0, "memory_allocated": 0,
    "max_memory_allocated": 0, "stream": contextlib.nullcontext(),
    **dict.fromkeys("init _lazy_init empty_cache synchronize reset_peak_memory_stats ipc_collect set_device".split()),
    **dict.fromkeys(("manual_seed", "manual_seed_all")),
}  # fmt: skip
DRIVER = {  # the same below, in torch._C
    "_cuda_getDevice": 0, "_cuda_setDevice": None, "_cuda_exchangeDevice": 0, "_cuda_maybeExchangeDevice": 0,
    "_cuda_getDeviceCount": 1, "_cuda_isCurrentStreamCapturing": False, "_cuda_isInBadFork": False,
    "_cuda_synchronize": None, "_cuda_emptyCache": None, "_cuda_getCurrentRawStream": 0,
}  # fmt: skip


class Stream:
    """A stream, or a device, on which everything has already happened."""

    cuda_stream = idx = 0

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def wait_stream(self, stream):
        pass

    def synchronize(self):
        pass


def on_cpu(value):
    """Return "cpu" for a CUDA device, written in either way, and any other value as it is."""
    text = value.type if isinstance(value, torch.device) else value
    return "cpu" if isinstance(text, str) and text.partition(":")[0] == "cuda" else value


class RedirectToCPU(TorchFunctionMode):
    """Give every request for a CUDA device to the CPU, device numbers included."""

    def __torch_function__(self, function, classes, args=(), kwargs=None):
        args = [on_cpu(value) for value in args]
        if function is torch.Tensor.to and len(args) > 1 and type(args[1]) is int:
            args[1] = "cpu"
        kwargs = {name: on_cpu(value) for name, value in (kwargs or {}).items() if name != "pin_memory"}
        if type(kwargs.get("device")) is int:
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


def install() -> None:
    """Make torch report the simulated device, for the whole process."""
    cuda = torch.cuda
    for module, answers in ((cuda, ANSWERS), (torch._C, DRIVER)):
        for name, value in answers.items():
            setattr(module, name, lambda *args, value=value, **kwargs: value)
    cuda.Stream = cuda.device = Stream
    cuda.current_stream = cuda.default_stream = lambda *args: Stream()
    for module in (cuda, cuda.random):
        module.get_rng_state = lambda *args: torch.get_rng_state()
        module.get_rng_state_all = lambda: [torch.get_rng_state()]
        module.set_rng_state = module.set_rng_state_all = lambda *args: None
    # Unsloth keeps tl.cast under another name, out of reach of the interpreter, which puts its own into tl.
    tl.builtin_cast, tl.cast = tl.cast, lambda *args, **kwargs: tl.builtin_cast(*args, **kwargs)
    torch.Tensor.cuda = torch.Tensor.pin_memory = lambda self, *args, **kwargs: self
    RedirectToCPU().__enter__()


if __name__ == "__main__":
    install()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
