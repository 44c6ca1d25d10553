"""A run's folder: its settings, a row of metrics an epoch, the state that --resume needs, its networks and its result."""

import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path

import torch
import torchvision

from networks import save_network, save_tensors
from utils import UserError, say


def write_json(path, content):
    partial = path.with_name(path.name + '.partial')
    partial.write_text(json.dumps(content) + '\n')
    os.replace(partial, path)


def hardware(device):
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name()
    return {'device': device.type, 'name': name, 'cpus': os.cpu_count(), 'threads': torch.get_num_threads()}


def cpu_name():
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# what may differ between a run and its resumption: where it runs, not what it computes
NOT_COMPARED = ('resume', 'workers', 'cache_dir', 'device', 'data', 'output_dir', 'teacher_dir', 'score_only')


class Run:
    """The folder `output_dir/name`, written by one script.

    Raises UserError when the folder is in use and `resume` is off, or when it holds a run with other settings.
    """

    def __init__(self, args, name, device, settings):
        """settings: a dict of every resolved argument; `args` gives output_dir, run, resume."""
        self.folder = Path(args.output_dir) / (args.run or name)
        self.name = self.folder.name
        self.started = time.time()
        self.before = 0.0  # seconds of the sittings before this one
        config_file = self.folder / 'config.json'
        if config_file.is_file():
            if not args.resume:
                raise UserError(f'{self.folder} is in use: add --resume to go on with it, or --run NAME for another folder')
            old = json.loads(config_file.read_text())['args']
            new = json.loads(json.dumps(settings))
            for key in sorted(old.keys() | new.keys()):
                if key not in NOT_COMPARED and old.get(key) != new.get(key):
                    raise UserError(f'{self.folder} was run with {key}={old.get(key)}, and now it is {new.get(key)}: give the '
                                    'same, or --run NAME for another folder')
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f'{self.folder} exists and holds no run: move it away, or give --run NAME for another folder')
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(config_file, {
                'args': settings,
                'command': shlex.join(['python', *sys.argv]),
                'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'torchvision': torchvision.__version__},
                'hardware': hardware(device),
            })

    def finished(self):
        """The result of a finished run, or None."""
        path = self.folder / 'result.json'
        return json.loads(path.read_text()) if path.is_file() else None

    def seconds(self):
        return self.before + time.time() - self.started

    # ------------------------------------------------------------ resume

    def save(self, epoch, step, best, **state):
        """Writes last.pt: `state` maps names to modules or optimisers (their state_dict is kept) or tensors.

        No random state is needed: every epoch draws its own from the seed (`utils.rng`).
        """
        state = {k: v.state_dict() if hasattr(v, 'state_dict') else v.detach() for k, v in state.items()}
        save_tensors(self.folder / 'last.pt', {'epoch': epoch, 'step': step, 'best': best, 'seconds': self.seconds(), **state})

    def load(self, device, **state):
        """Restores what `save` wrote, in place. Returns (epoch, step, best), (0, 0, None) where nothing was saved."""
        path = self.folder / 'last.pt'
        metrics = self.folder / 'metrics.jsonl'
        if not path.is_file():
            metrics.unlink(missing_ok=True)
            return 0, 0, None
        last = torch.load(path, map_location=device, weights_only=True)
        for name, value in state.items():
            if hasattr(value, 'load_state_dict'):
                value.load_state_dict(last[name])
            else:
                with torch.no_grad():
                    value.copy_(last[name])
        self.before = last['seconds']
        rows = metrics.read_text().splitlines() if metrics.is_file() else []  # a row more than last.pt knows, if killed between
        metrics.write_text(''.join(row + '\n' for row in rows[: last['epoch']]))
        say(f'resumed {self.folder} after epoch {last["epoch"]}')
        return last['epoch'], last['step'], last['best']

    # ------------------------------------------------------------ metrics and result

    def log(self, row, epochs):
        """Appends a row to metrics.jsonl and prints it as one line. row: a dict with epoch, step, losses, top1, ..."""
        with open(self.folder / 'metrics.jsonl', 'a') as f:
            f.write(json.dumps(row) + '\n')
        text = [f'epoch {row["epoch"]}/{epochs}', f'step {row["step"]}', f'lr {row["lr"]:.4g}']
        text += [f'{k} {v:.4f}' for k, v in row.items() if 'loss' in k and v is not None]
        text += [f'top1 {row["top1"]:.2f}'] if row['top1'] is not None else []
        say('  '.join([*text, f'{row["images_per_s"]:.0f} img/s', f'{row["seconds"]:.0f} s']))

    def save_network(self, name, net, facts, accuracy):
        save_network(self.folder / name, net, {**facts, 'accuracy': accuracy})

    def finish(self, result):
        """Writes result.json and prints the RESULT line, the last on stdout."""
        result = {**result, 'seconds': round(self.seconds(), 1), 'run': self.name}
        write_json(self.folder / 'result.json', result)
        print_result(result)


def print_result(result):
    sys.stderr.flush()
    print('RESULT ' + json.dumps(result), flush=True)
