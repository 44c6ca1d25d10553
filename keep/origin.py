"""Where a run comes from, as its config.json keeps it: the command, the code, the versions, the machine."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch
import torchvision

import distributed
from keep import stops


def origin(device):
    """What config.json holds beside the settings. device: the torch.device of the run."""
    return {'command': command(), 'torchrun': distributed.torchrun(), 'commit': commit(),
            'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'torchvision': torchvision.__version__},
            'hardware': {'device': device.type, 'name': torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name(),
                         'cpus': os.cpu_count(), 'threads': torch.get_num_threads(), 'processes': distributed.world()}}


def command():
    return shlex.join(['python', *stops.script().split(), *sys.argv[1:]])


def cpu_name():
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit():
    """The Git commit of this code, with a + where a tracked file was changed since; None outside a checkout."""
    try:
        name, changed = (subprocess.run(['git', *words], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=10)
                         for words in (('rev-parse', 'HEAD'), ('status', '--porcelain', '--untracked-files=no')))
    except (OSError, subprocess.SubprocessError):  # no git
        return None
    return name.stdout.strip() + ('+' if changed.stdout.strip() else '') if name.returncode == 0 else None
