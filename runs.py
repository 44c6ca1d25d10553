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

import distributed
from networks import build, count_multiply_adds, count_parameters, save_network, save_tensors
from processes import lock
from utils import UserError, first_line, say


def write_json(path, content):
    partial = path.with_name(path.name + '.partial')
    partial.write_text(json.dumps(content) + '\n')
    os.replace(partial, path)


def hardware(device):
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name()
    return {'device': device.type, 'name': name, 'cpus': os.cpu_count(), 'threads': torch.get_num_threads(),
            'processes': distributed.world()}


def cpu_name():
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# what may differ between a run and its resumption: where it runs, not what it computes
NOT_COMPARED = {'resume', 'workers', 'cache_dir', 'device', 'data', 'output_dir', 'teacher_dir', 'score_only'}


class Run:
    """The folder `output_dir/name`, written by one script.

    Raises UserError when the folder is in use and `resume` is off, when it holds a run with other settings, or when another
    process is writing it. `settings` are those that the run began with.
    """

    def __init__(self, args, name, device, settings):
        """settings: a dict of every resolved argument; `args` gives output_dir, run, resume."""
        self.folder = Path(args.output_dir) / (args.run or name)
        self.name = self.folder.name
        self.lock = None
        self.started = time.time()
        self.before = 0.0  # seconds of the sittings before this one
        self.settings = distributed.on_first(self._open, args, device, settings)

    def _open(self, args, device, settings):
        config_file = self.folder / 'config.json'
        if config_file.is_file():
            self._lock()
        begun = any((self.folder / name).is_file() for name in ('last.pt', 'selection.npz', 'result.json'))
        if config_file.is_file() and begun:
            if not args.resume:
                raise UserError(f'{self.folder} is in use: add --resume to go on with it, or --run NAME for another folder')
            try:
                old = json.loads(config_file.read_text())['args']
            except (ValueError, LookupError) as e:
                raise UserError(f'{config_file} is damaged ({first_line(e)}): give --run NAME for another folder') from None
            new = json.loads(json.dumps(settings))
            # what was measured here, and not asked for, may come out a little different: the run keeps the first
            free = NOT_COMPARED | (set() if getattr(args, 'teacher_acc', None) else {'teacher_acc'})
            for key in sorted(old.keys() & new.keys()):
                if key not in free and old[key] != new[key]:
                    raise UserError(f'{self.folder} was run with {key}={old[key]}, and now it is {new[key]}: give the '
                                    'same, or --run NAME for another folder')
            return old
        if not config_file.is_file() and self.folder.exists() and not self._is_empty():
            raise UserError(f'{self.folder} exists and holds no run: move it away, or give --run NAME for another folder')
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            write_json(config_file, {
                'args': settings,
                'command': shlex.join(['python', Path(sys.argv[0]).name, *sys.argv[1:]]),
                'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'torchvision': torchvision.__version__},
                'hardware': hardware(device),
            })
        except OSError as e:
            raise UserError(f'{self.folder} can not be written ({first_line(e)}): give another --output_dir') from None
        return settings

    def _is_empty(self):
        """But for what a run that was killed at its very start leaves."""
        return self.folder.is_dir() and all(path.name == 'lock' or path.suffix == '.partial' for path in self.folder.iterdir())

    def _lock(self):
        """Holds the folder for as long as this process lives."""
        self.lock = self.lock or lock(self.folder / 'lock')
        if not self.lock:
            raise UserError(f'another process is running in {self.folder}: wait for it, or give --run NAME for another folder')

    def finished(self):
        """The result of a finished run, or None."""
        path = self.folder / 'result.json'
        return json.loads(path.read_text()) if path.is_file() else None

    def seconds(self):
        return self.before + time.time() - self.started

    # ------------------------------------------------------------ resume

    def start(self, kind, net, facts, epochs, device, **state):
        """Begins, or goes on with, a training of `epochs` epochs. Returns (epoch, step), both 0 for a fresh run.

        kind: 'teacher' or 'student', the name of the network's files. net: the network to keep; facts: see
        networks.save_network. state: what else `--resume` needs, modules, optimisers or tensors by name; all are restored in
        place. No random state is among them: every epoch draws its own from the seed (`utils.rng`).
        """
        self.kind, self.net, self.facts, self.epochs = kind, net, facts, epochs
        self.state = {'net': net, **state}
        self.top1 = self.best = None
        last_file, metrics = self.folder / 'last.pt', self.folder / 'metrics.jsonl'
        if not last_file.is_file():
            distributed.on_first(lambda: metrics.unlink(missing_ok=True))
            return 0, 0
        last = torch.load(last_file, map_location='cpu', weights_only=True)  # optimisers keep their step counts there
        for name, value in self.state.items():
            if hasattr(value, 'load_state_dict'):
                value.load_state_dict(last[name])
            else:
                with torch.no_grad():
                    value.copy_(last[name])
        self.top1, self.best, self.before = last['top1'], last['best'], last['seconds']
        if distributed.rank() == 0:
            rows = metrics.read_text().splitlines() if metrics.is_file() else []  # a row more than last.pt knows, if killed between
            metrics.write_text(''.join(row + '\n' for row in rows[: last['epoch']]))
        say(f'resumed {self.folder} after epoch {last["epoch"]}')
        return last['epoch'], last['step']

    def end_epoch(self, epoch, step, lr, means, seconds, test_loss, top1):
        """Logs the epoch as a row of metrics.jsonl and a line, keeps the best network, and writes last.pt.

        means: a utils.Means, its count the images of this epoch. seconds: of its training alone. test_loss and top1 (percent)
        are None where there is no test data.
        """
        row = {'epoch': epoch, 'step': step, 'lr': lr, **means.read(), 'test_loss': test_loss, 'top1': top1,
               'images_per_s': means.count / seconds, 'seconds': self.seconds()}
        self.top1 = top1
        if distributed.rank() > 0:
            return
        with open(self.folder / 'metrics.jsonl', 'a') as f:
            f.write(json.dumps(row) + '\n')
        text = [f'epoch {epoch}/{self.epochs}', f'step {step}', f'lr {lr:.4g}']
        text += [f'{k} {v:.4f}' for k, v in row.items() if 'loss' in k and v is not None]
        text += [f'top1 {top1:.2f}'] if top1 is not None else []
        say('  '.join([*text, f'{row["images_per_s"]:.0f} img/s', f'{row["seconds"]:.0f} s']))
        if top1 is not None and (self.best is None or top1 > self.best):
            self.best = top1
            self._save_network(f'{self.kind}-best.pt', top1)
        state = {k: v.state_dict() if hasattr(v, 'state_dict') else v.detach() for k, v in self.state.items()}
        save_tensors(self.folder / 'last.pt', {'epoch': epoch, 'step': step, 'top1': top1, 'best': self.best, 'seconds': self.seconds(),
                                               **state})

    def _save_network(self, name, top1):
        save_network(self.folder / name, self.net, {**self.facts, 'accuracy': None if top1 is None else top1 / 100})

    def finish(self, result):
        """Writes the last epoch's network and result.json, and prints the RESULT line, the last on stdout."""
        if distributed.rank() > 0:
            return
        self._save_network(f'{self.kind}.pt', self.top1)
        net = build(*(self.facts[k] for k in ('arch', 'width', 'classes', 'channels')))
        result = {**result, 'top1': self.top1, 'top1_best': self.best, 'params': count_parameters(net),
                  'flops': count_multiply_adds(net, self.facts['channels']), 'seconds': round(self.seconds(), 1), 'run': self.name}
        write_json(self.folder / 'result.json', result)
        print_result(result)


def print_result(result):
    if distributed.rank() == 0:
        sys.stderr.flush()
        print('RESULT ' + json.dumps(result), flush=True)
