"""One thread for all tests: two threads on shared cores wait for each other more than they compute."""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # also for the processes that tests start
os.environ["MPLBACKEND"] = "Agg"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

torch.set_num_threads(1)
