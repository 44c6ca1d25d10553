"""A run's folder: its settings, a row of metrics an epoch, the state that --resume needs, its networks and its result."""

import json
import sys
import time
from pathlib import Path

import torch

import distributed
import training
from arguments import MAY_CHANGE
from keep import stops
from keep.begun import SAVED, check_unused, folder_of, is_begun, is_longer, read_config
from keep.origin import command, origin
from networks import count_multiply_adds, count_parameters, save_network
from paper import board
from utils import Damaged, UserError, checked, first_line, json_line, read_json, read_rows, say, warn, write_json, written_aside
from wild.workers import lock

# what a result repeats of the settings; None where a script has no such setting
REPEATED = ('recipe', 'select', 'loss', 'dataset', 'arch', 'width', 'seed', 'epochs', 'steps', 'num_select', 'class_weights', 'T',
            'augment', 'wild_norm', 'teacher_acc', 'teacher')


class Run:
    """The folder of a run, written by one script. Raises UserError when it is in use and --resume is off, when it holds a run with
    other settings, or when another process is writing it."""

    def __init__(self, settings, name, device, measured=()):
        """settings: an arguments.Settings; those of a resumed run are kept: `self.settings` has them. name: of the folder, where --run
        gives none. measured: settings that were measured and not asked for: they may differ a little, and the run keeps the first."""
        self.folder = folder_of(settings, name)
        self.name, self.lock, self.board, self.exported = self.folder.name, None, None, None
        self.started, self.before = time.time(), 0.0  # before: seconds of the sittings before this one
        self.device, self.agreement = device, distributed.Agreement()
        self.settings = settings.replace(**distributed.on_first(self._open, settings, device, measured))

    def _open(self, settings, device, measured):
        """Returns the settings that a resumed run keeps."""
        config_file, begun = self.folder / 'config.json', is_begun(self.folder)
        if config_file.is_file() or begun:
            self._lock()
            check_unused(self.folder, settings.resume)
        if config_file.is_file() and (begun or any(self.folder.glob('stream/*.npz'))):
            return self._kept(config_file, json.loads(json.dumps(vars(settings))), measured)
        if begun:
            warn(f'{config_file} is missing: it is written again, with the settings of this command, which can not be compared')
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # a run that was killed at its very start leaves these two
            if not (begun or config_file.is_file() or all(p.name == 'lock' or p.suffix == '.partial' for p in self.folder.iterdir())):
                raise UserError(f'{self.folder} exists and holds no run: move it away, or give --run NAME for another folder')
            self._lock()
            write_json(config_file, {'settings': vars(settings), **origin(device)})
        except OSError as e:
            raise UserError(f'{self.folder} can not be written ({first_line(e)}): give another --output_dir') from None
        return {}

    def _kept(self, config_file, new, measured):
        config = read_config(config_file)
        old = config['settings']
        compared = old.keys() & new.keys() - MAY_CHANGE - set(measured)
        changed = sorted(key for key in compared if old[key] != new[key])
        if changed and is_longer(old, new, changed):
            self._check_result()
            longer = {key: new[key] for key in ('epochs', 'steps') if key in new}  # both, whichever of them was asked for
            write_json(config_file, {**config, 'command': command(), 'settings': {**old, **longer}})
            measured = {*measured} - longer.keys()
        elif changed:
            raise UserError(f'{self.folder} was run with {", ".join(f"{key}={old[key]}" for key in changed)}, and now it is '
                            f'{", ".join(f"{key}={new[key]}" for key in changed)}: give the same, or --run NAME for another folder')
        return {key: old[key] for key in measured if key in old}

    def _lock(self):
        """Holds the folder for as long as this process lives."""
        self.lock = self.lock or lock(self.folder / 'lock')
        if not self.lock:
            raise UserError(f'another process is running in {self.folder}: wait for it, or give --run NAME for another folder')

    def finished(self):
        """Whether the run has a result, which is then printed; that of a shorter run is none, nor is one without an export that is asked
        for now."""
        path = self.folder / 'result.json'
        try:
            result = read_json(path) if path.is_file() else None
        except Damaged:
            warn(f'{path} is damaged: it is made again from the last saved state')
            return False
        if not result or (result.get('epochs') or self.settings.epochs) < self.settings.epochs:
            return False
        late = ', '.join(self._late(result.get('export') or {}))
        if late and self._states():
            say(f'{self.folder} is finished, and is exported now: {late}')
            self.exported = result
            return False
        if late:
            warn(f'{self.folder} has no saved state any more, so it is not exported: {late}')
        if distributed.rank() == 0:
            board.write_end(self)
        print_result(result)
        return True

    def _late(self, had):
        """The formats that are asked for and that an earlier export, `had`, does not hold, or holds no more, or in another form."""
        asked, normalise = getattr(self.settings, 'export', None) or [], getattr(self.settings, 'export_normalise', None)
        if asked and had.get('normalise', normalise) != normalise:
            files = [part['file'] for part in had.values() if isinstance(part, dict) and 'file' in part]
            if others := [file for file in files if Path(file).suffix[1:] not in asked]:
                raise UserError(f'{self.folder / others[0]} was exported with{"" if had["normalise"] else "out"} mean and std in it, and '
                                'the exports of a run take the same images: name its format in --export too, or leave '
                                '--export_normalise as it was')
            return sorted(asked)
        return sorted(name for name in asked if name not in had or not (self.folder / had[name]['file']).is_file())

    def seconds(self):
        return self.before + time.time() - self.started

    def start(self, kind, net, facts, **state):
        """Begins, or goes on with, a training: `epochs`, `step_done` and `end_epoch` drive it from here. kind: 'teacher' or 'student', the
        name of the network's files. net: the network to keep; facts: see networks.save_network. state: what else `--resume` needs,
        modules, optimisers or tensors by name; all are restored in place. No random state is among them: every epoch draws its own from
        the seed (`training.rng`), and every step what a network draws, so the steps that are done say where it goes on."""
        self.kind, self.net, self.facts = kind, net, facts
        self.state = {'net': net, **state}
        self.top1 = self.best = self.lr = None
        self.epoch = self.step = self.done = self.good = 0  # finished epochs, all steps, those of this epoch, and those that were saved
        self.means = training.Means()
        self.saved, self.saving = time.monotonic(), 0.0  # when, and how many seconds that took
        last, metrics = self._saved(), self.folder / 'metrics.jsonl'
        if not last:
            distributed.on_first(self._begin_again, metrics)
            stops.hold(self._pause)
            return
        self._restore(last)
        self.top1, self.best, self.before, self.epoch, self.step = (last[k] for k in ('top1', 'best', 'seconds', 'epoch', 'step'))
        self.good = self.step
        if inside := last.get('inside'):
            self.done, self.lr, self.means = inside['done'], inside['lr'], training.Means(inside['means'], self.device)
        if distributed.rank() == 0:
            self._keep_rows(metrics, self.epoch)
        say(f'resumed {self.folder} after epoch {self.epoch}' + (f' and {self.done} steps' if self.done else ''))
        if self.epoch < self.settings.epochs:
            stops.hold(self._pause)

    def _begin_again(self, metrics):
        """Where nothing was saved."""
        self._check_result()
        if metrics.is_file():
            say(f'nothing was saved in {self.folder}: the training begins at its first epoch')
            metrics.unlink()

    def _check_result(self):
        """Raises UserError where there is a result, which must not be lost, and nothing to go on from."""
        if (self.folder / 'result.json').is_file() and not self._states():
            raise UserError(f'{self.folder} has a result, but no saved state ({" or ".join(SAVED)}) to go on from: give --run NAME for '
                            'another folder')

    def _restore(self, last):
        try:
            for name, value in self.state.items():
                if hasattr(value, 'load_state_dict'):
                    value.load_state_dict(last[name])
                else:
                    with torch.no_grad():
                        value.copy_(last[name])
        except (LookupError, RuntimeError, TypeError, ValueError) as e:
            raise UserError(f'{self.folder} has the saved state of another network or optimizer ({" ".join(str(e).split()):.200}): restore '
                            'its code, or give --run NAME for another folder') from None

    def _states(self):
        """The files of saved states, the newest first."""
        return [file for name in SAVED if (file := self.folder / name).is_file()]

    def _saved(self):
        """The newest saved state that is whole, on the CPU, where optimisers keep their step counts; None where none was saved."""
        found = self._states()
        for file in found:
            try:
                return torch.load(checked(file), map_location='cpu', weights_only=True)
            except Exception as e:  # torch.load raises a dozen kinds for a damaged file
                warn(f'{file} can not be used ({first_line(e)})' + (f': going on from {found[1]}' if file != found[-1] else ''))
        if found:
            raise UserError(f'{self.folder} holds no saved state that is whole: begin again with --run NAME')

    def _keep_rows(self, metrics, epochs):
        """Takes off the rows after so many epochs, which were written before a kill, and those that are damaged."""
        rows = [row for row in read_rows(metrics, epochs) if row.get('epoch', 0) <= epochs]
        with written_aside(metrics, 'w') as file:
            file.writelines(json_line(row).decode() for row in rows)

    def epochs(self):
        """The numbers, from 1, of the epochs that are left, first the one that was stopped in its middle."""
        while self.epoch < self.settings.epochs:
            training.seed_step(self.settings.seed, self.step, self.device)
            yield self.epoch + 1

    def step_done(self, count, weight, lr, **losses):
        """Counts a step, and saves or stops where that is due. See training.Means.add. lr: the learning rate of the step."""
        self.means.add(count, weight, **losses)
        self.step, self.done, self.lr = self.step + 1, self.done + 1, lr
        training.seed_step(self.settings.seed, self.step, self.device)
        if self.done % training.CHECKED == 0:
            self._check()
        self._pause()

    def _check(self):
        """The state of the means. Raises UserError where a loss or a weight is not finite; all processes call it at the same step."""
        means = self.means.state()
        good = f'the last good state is {self.folder / SAVED[0]}, of step {self.good}' if self.good else 'nothing was saved before'
        training.check_finite(means['sums'], self.net.parameters(), f'by step {self.step} ({good})')
        return means

    def _pause(self):
        asked = self.agreement.ask(stops.asked(), self._due(60 * self.settings.save_minutes))
        if not asked:
            return
        number, due = asked
        if number or due:
            self._save()
        if number:
            raise stops.Stopped(int(number), f' in epoch {self.epoch + 1} after step {self.step}, which is saved')

    def _due(self, seconds=0):
        """Whether so long after the last save, and after 50 times what it took, the first process saves."""
        return distributed.rank() == 0 and time.monotonic() - self.saved >= max(seconds, 50 * self.saving)

    def _save(self):
        """Writes last.pt; all processes call it at the same step. See `_check`."""
        begun = time.monotonic()
        inside = {'done': self.done, 'lr': self.lr, 'means': self._check()} if self.done else None
        if distributed.rank() == 0:
            state = {k: v.state_dict() if hasattr(v, 'state_dict') else v.detach() for k, v in self.state.items()}
            last, previous = (self.folder / name for name in SAVED)
            with written_aside(last, previous=previous) as file:
                torch.save({'epoch': self.epoch, 'step': self.step, 'inside': inside, 'top1': self.top1, 'best': self.best,
                            'seconds': self.seconds(), **state}, file)
        self.saved, self.good = time.monotonic(), self.step
        self.saving = self.saved - begun

    def end_epoch(self, test, agreement=None):
        """Logs the epoch as a row of metrics.jsonl and a line, keeps the best network, and saves, where the last save is not too near.
        test: (loss, top-1 in percent) on the test data, or a pair of None without any. agreement: in percent."""
        self._check()
        test_loss, self.top1 = test
        losses = self.means.read()
        self.epoch, self.done, last = self.epoch + 1, 0, self.epoch + 1 == self.settings.epochs
        if distributed.rank() == 0:
            self._log({'epoch': self.epoch, 'step': self.step, 'lr': self.lr, **losses, 'test_loss': test_loss, 'top1': self.top1,
                       'images_per_s': self.means.count / self.means.seconds, 'seconds': self.seconds(),
                       **({} if agreement is None else {'agreement': agreement})})
        self.means = training.Means()
        if last or self._due():
            self._save()
        if last:
            stops.release()  # from here on, nothing is lost

    def _log(self, row):
        board.write_row(self, row)
        with open(self.folder / 'metrics.jsonl', 'ab') as f:
            f.write(json_line(row))
        losses = [f'{k} {v:.4f}' for k, v in row.items() if 'loss' in k and v is not None]
        top1 = [f'{name} {row[name]:.2f}' for name in ('top1', 'agreement') if row.get(name) is not None]
        say('  '.join([f'epoch {row["epoch"]}/{self.settings.epochs}', f'step {row["step"]}', f'lr {row["lr"]:.4g}', *losses, *top1,
                       f'{row["images_per_s"]:.0f} img/s', f'{row["seconds"]:.0f} s']))
        if self.top1 is not None and (self.best is None or self.top1 > self.best):
            self.best = self.top1
            self._save_network(f'{self.kind}-best.pt')

    def _save_network(self, name):
        save_network(self.folder / name, self.net, {**self.facts, 'accuracy': None if self.top1 is None else self.top1 / 100})

    def result(self, method, **measured):
        """What result.json holds: the settings that a table needs, and what was measured."""
        settings = {key: getattr(self.settings, key, None) for key in REPEATED}
        return {'script': stops.script(), 'method': method, **settings, **measured, 'seconds': round(self.seconds(), 1),
                'run': self.name}

    def finish(self, method, **measured):
        """Writes the last epoch's network and result.json, and prints the RESULT line, the last on stdout."""
        if distributed.rank() > 0:
            return
        self._save_network(f'{self.kind}.pt')
        result = self.result(method, top1=self.top1, top1_best=self.best, params=count_parameters(self.net),
                             flops=count_multiply_adds(self.net, self.facts['channels'], self.facts['size']), **measured)
        if before := self.exported:  # a result of the same student
            old, new = before.get('export') or {}, result['export']
            result |= {'seconds': before['seconds'], 'export': {**old, **new, 'cost': old.get('cost', {}) | new['cost']}}
        for file in self.folder.glob('student.*'):
            if (name := file.suffix[1:]) in {'onnx', 'pt2'} - (result.get('export') or {}).keys():
                warn(f'{file} is an export of the student before this training went on: --resume with --export {name} writes it again')
        write_json(self.folder / 'result.json', result)
        board.write_end(self)
        print_result(result)


def print_result(result):
    if distributed.rank() == 0:
        sys.stderr.flush()
        print('RESULT ' + json.dumps(result), flush=True)
