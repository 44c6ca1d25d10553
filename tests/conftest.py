"""What every test module needs: our flat modules on the path, and one thread, so that small tests don't wait for each other."""
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(1)
