"""Run a script under a cap of GPU memory: `python tests/capped.py 11.2 sft_alpaca.py` (GiB)."""

import runpy
import sys

import torch

if torch.cuda.is_available():
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, float(sys.argv[1]) * 2**30 / whole))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
