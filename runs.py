"""A run's folder: its settings, a row of metrics an epoch, the state that --resume needs, its networks and its result."""

import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
import torchvision

import distributed
from arguments import WHERE
from networks import count_multiply_adds, count_parameters, save_network
from paper import board
from utils import Damaged, UserError, checked, first_line, json_line, read_json, read_object, say, warn, write_json, written_aside
from wild.workers import lock

# what a result repeats of the settings; None where a script has no such setting
REPEATED = ('recipe', 'select', 'loss', 'dataset', 'arch', 'width', 'seed', 'epochs', 'steps', 'num_select', 'class_weights', 'T',
            'augment', 'wild_norm', 'teacher_acc', 'teacher')
SAVED = ('last.pt', 'previous.pt')  # the state of the last epoch, and of the one before


def cpu_name():
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit():
    """The Git commit of this code, with a + where a tracked file was changed since; None outside a checkout."""
    try:
        name, changed = (subprocess.run(['git', *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
                         for words in (('rev-parse', 'HEAD'), ('status', '--porcelain', '--untracked-files=no')))
    except (OSError, subprocess.SubprocessError):  # no git
        return None
    return name.stdout.strip() + ('+' if changed.stdout.strip() else '') if name.returncode == 0 else None


class Run:
    """The folder of a run, written by one script. Raises UserError when it is in use and --resume is off, when it holds a run with
    other settings, or when another process is writing it."""

    def __init__(self, settings, name, device, measured=()):
        """settings: an arguments.Settings; those of a resumed run are kept: `self.settings` has them. name: of the folder, where --run
        gives none. measured: settings that were measured and not asked for: they may differ a little, and the run keeps the first."""
        self.folder = Path(settings.output_dir) / (settings.run or name)
        self.name, self.lock, self.board = self.folder.name, None, None
        self.started, self.before = time.time(), 0.0  # before: seconds of the sittings before this one
        self.settings = settings.replace(**distributed.on_first(self._open, settings, device, measured))

    def _open(self, settings, device, measured):
        """Returns the settings that a resumed run keeps."""
        config_file = self.folder / 'config.json'
        if config_file.is_file():
            self._lock()
            if any((self.folder / name).is_file() for name in (*SAVED, 'selection.npz', 'result.json')):
                if not settings.resume:
                    raise UserError(f'{self.folder} is in use: add --resume to go on with it, or --run NAME for another folder')
                return self._kept(config_file, json.loads(json.dumps(vars(settings))), measured)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # a run that was killed at its very start leaves these two
            if not config_file.is_file() and not all(p.name == 'lock' or p.suffix == '.partial' for p in self.folder.iterdir()):
                raise UserError(f'{self.folder} exists and holds no run: move it away, or give --run NAME for another folder')
            self._lock()
            write_json(config_file, {
                'settings': vars(settings),
                'command': shlex.join(['python', Path(sys.argv[0]).name, *sys.argv[1:]]),
                'commit': commit(),
                'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'torchvision': torchvision.__version__},
                'hardware': {
                    'device': device.type, 'name': torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name(),
                    'cpus': os.cpu_count(), 'threads': torch.get_num_threads(), 'processes': distributed.world()},
            })
        except OSError as e:
            raise UserError(f'{self.folder} can not be written ({first_line(e)}): give another --output_dir') from None
        return {}

    def _kept(self, config_file, new, measured):
        config = read_json(config_file)
        old = config.get('settings', config.get('args'))  # args: as it was called until November 2026
        if not isinstance(old, dict):
            raise UserError(f'{config_file} is damaged, it holds no settings: give --run NAME for another folder')
        compared = old.keys() & new.keys() - WHERE - set(measured)
        for key in sorted(key for key in compared if old[key] != new[key]):
            raise UserError(f'{self.folder} was run with {key}={old[key]}, and now it is {new[key]}: give the same, or --run NAME '
                            'for another folder')
        return {key: old[key] for key in measured if key in old}

    def _lock(self):
        """Holds the folder for as long as this process lives."""
        self.lock = self.lock or lock(self.folder / 'lock')
        if not self.lock:
            raise UserError(f'another process is running in {self.folder}: wait for it, or give --run NAME for another folder')

    def finished(self):
        """Whether the run has a result, which is then printed."""
        path = self.folder / 'result.json'
        try:
            if path.is_file():
                print_result(read_json(path))
            return path.is_file()
        except Damaged:
            warn(f'{path} is damaged: it is made again from the last saved state')
            return False

    def seconds(self):
        return self.before + time.time() - self.started

    def start(self, kind, net, facts, **state):
        """Begins, or goes on with, a training. Returns (epoch, step), both 0 for a fresh run. kind: 'teacher' or 'student', the name of
        the network's files. net: the network to keep; facts: see networks.save_network. state: what else `--resume` needs, modules,
        optimisers or tensors by name; all are restored in place. No random state is among them: every epoch draws its own from the
        seed (`training.rng`)."""
        self.kind, self.net, self.facts = kind, net, facts
        self.state = {'net': net, **state}
        self.top1 = self.best = None
        last, metrics = self._saved(), self.folder / 'metrics.jsonl'
        if not last:
            distributed.on_first(metrics.unlink, True)
            return 0, 0
        for name, value in self.state.items():
            if hasattr(value, 'load_state_dict'):
                value.load_state_dict(last[name])
            else:
                with torch.no_grad():
                    value.copy_(last[name])
        self.top1, self.best, self.before = last['top1'], last['best'], last['seconds']
        if distributed.rank() == 0:
            self._keep_rows(metrics, last['epoch'])
        say(f'resumed {self.folder} after epoch {last["epoch"]}')
        return last['epoch'], last['step']

    def _saved(self):
        """The newest saved state that is whole, on the CPU, where optimisers keep their step counts; None where none was saved."""
        found = [file for name in SAVED if (file := self.folder / name).is_file()]
        for file in found:
            try:
                return torch.load(checked(file), map_location='cpu', weights_only=True)
            except Exception as e:  # torch.load raises a dozen kinds for a damaged file
                warn(f'{file} can not be used ({first_line(e)})' + (f': going on from {found[1]}' if file != found[-1] else ''))
        if found:
            raise UserError(f'{self.folder} holds no saved state that is whole: begin again with --run NAME')

    def _keep_rows(self, metrics, epochs):
        """Takes off the rows after so many epochs, which were written before a kill, and those that are damaged."""
        rows = []
        for line in metrics.read_bytes().splitlines(keepends=True)[:epochs] if metrics.is_file() else ():
            with contextlib.suppress(Damaged):
                rows.append(read_object(line, metrics) and line.decode())
        if len(rows) < epochs:
            warn(f'{metrics} is damaged: {epochs - len(rows)} of its {epochs} rows are lost')
        with written_aside(metrics, 'w') as file:
            file.write(''.join(rows))

    def end_epoch(self, epoch, step, lr, means, test, agreement=None):
        """Logs the epoch as a row of metrics.jsonl and a line, keeps the best network, and writes last.pt. means: a training.Means.
        test: (loss, top-1 in percent) on the test data, or a pair of None without any. agreement: with the teacher, in percent."""
        test_loss, self.top1 = test
        row = {'epoch': epoch, 'step': step, 'lr': lr, **means.read(), 'test_loss': test_loss, 'top1': self.top1,
               'images_per_s': means.count / means.seconds, 'seconds': self.seconds()}
        if agreement is not None:
            row['agreement'] = agreement
        if distributed.rank() > 0:
            return
        board.write_row(self, row)
        with open(self.folder / 'metrics.jsonl', 'ab') as f:
            f.write(json_line(row))
        losses = [f'{k} {v:.4f}' for k, v in row.items() if 'loss' in k and v is not None]
        top1 = [f'{name} {value:.2f}' for name, value in (('top1', self.top1), ('agreement', agreement)) if value is not None]
        say('  '.join([f'epoch {epoch}/{self.settings.epochs}', f'step {step}', f'lr {lr:.4g}', *losses, *top1,
                       f'{row["images_per_s"]:.0f} img/s', f'{row["seconds"]:.0f} s']))
        if self.top1 is not None and (self.best is None or self.top1 > self.best):
            self.best = self.top1
            self._save_network(f'{self.kind}-best.pt')
        state = {k: v.state_dict() if hasattr(v, 'state_dict') else v.detach() for k, v in self.state.items()}
        last, previous = (self.folder / name for name in SAVED)
        with written_aside(last, previous=previous) as file:
            torch.save({'epoch': epoch, 'step': step, 'top1': self.top1, 'best': self.best, 'seconds': self.seconds(), **state}, file)

    def _save_network(self, name):
        save_network(self.folder / name, self.net, {**self.facts, 'accuracy': None if self.top1 is None else self.top1 / 100})

    def result(self, method, **measured):
        """What result.json holds: the settings that a table needs, and what was measured."""
        settings = {key: getattr(self.settings, key, None) for key in REPEATED}
        return {'script': Path(sys.argv[0]).name, 'method': method, **settings, **measured, 'seconds': round(self.seconds(), 1),
                'run': self.name}

    def finish(self, method, **measured):
        """Writes the last epoch's network and result.json, and prints the RESULT line, the last on stdout."""
        if distributed.rank() > 0:
            return
        self._save_network(f'{self.kind}.pt')
        result = self.result(method, top1=self.top1, top1_best=self.best, params=count_parameters(self.net),
                             flops=count_multiply_adds(self.net, self.facts['channels'], self.facts['size']), **measured)
        write_json(self.folder / 'result.json', result)
        board.write_end(self)
        print_result(result)


def print_result(result):
    if distributed.rank() == 0:
        sys.stderr.flush()
        print('RESULT ' + json.dumps(result), flush=True)
