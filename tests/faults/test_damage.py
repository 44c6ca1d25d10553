"""A damaged file of a run or of the cache: the state before is used, or what is damaged is made again; a line says so."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from images import CPU, teacher_of, write_images

from arguments import Settings
from data import MNIST
from networks import build
from runs import Run
from selection import Rule, score_and_select
from utils import Damaged, UserError, read_json, read_json_lines, write_json
from wild import decode
from wild.classes import statistics
from wild.decode import decode_files
from wild.reading import Decoder


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def damage(path, how, dice):
    data = path.read_bytes()
    if how == 'a bit':
        flip(path, dice.randrange(8 * len(data)))
    elif how == 'cut off':
        path.write_bytes(data[: dice.randrange(len(data))])
    elif how == 'a hole':  # a block that was never written
        start = dice.randrange(len(data))
        path.write_bytes(data[:start] + bytes(len(data[start : start + 4096])) + data[start + 4096 :])
    else:
        path.write_bytes(b'null\n')


HOW = ('a bit', 'cut off', 'a hole', 'null')


class Sitting:
    """A run of some epochs in a folder, in which epoch n sets every weight to n."""

    def __init__(self, folder, epochs, resume=True):
        settings = Settings(output_dir=str(folder), run='r', resume=resume, epochs=epochs, seed=0, tensorboard=False, save_minutes=10)
        self.run = Run(settings, 'r', CPU)
        try:
            if self.run.finished():
                return
            self.net = build('lenet5half', 3, 10, 1)
            self.run.start('student', self.net, MNIST.facts('MNIST', 'lenet5half', 3))
            self.begun = self.run.epoch
            for epoch in self.run.epochs():
                with torch.no_grad():
                    for p in self.net.parameters():
                        p.fill_(epoch)
                self.run.step_done(8, 1.0, 0.1, loss=torch.tensor(1 / epoch))
                self.run.saving = 0.0  # so that every epoch is saved
                self.run.end_epoch((0.5, 10.0 * epoch))
            self.run.finish('student')
        finally:
            self.run.lock.release()

    def kept(self):
        """What is left of it, without the times."""
        folder, times = self.run.folder, ('seconds', 'images_per_s')
        rows = [{k: v for k, v in row.items() if k not in times} for row in read_json_lines(folder / 'metrics.jsonl')]
        result = json.loads((folder / 'result.json').read_text())
        weights = torch.load(folder / 'student.pt', weights_only=True)['state_dict']
        return rows, {k: result[k] for k in ('top1', 'top1_best')}, {k: v.flatten()[0].item() for k, v in weights.items()}


@pytest.mark.parametrize('name', ['last.pt', 'result.json'])
def test_a_damaged_file_of_a_run_is_made_again_from_the_state_before(name, tally, tries, dice, tmp_path, capfd):
    whole = Sitting(tmp_path, 4, resume=False).kept()
    folder = tmp_path / 'r'
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with tally('damaged, then --resume', name) as t:
        for how in HOW * tries(1, 8):
            for file, content in before.items():
                (folder / file).write_bytes(content)
            if name == 'last.pt':
                (folder / 'result.json').unlink()
            damage(folder / name, how, dice)
            capfd.readouterr()
            again = Sitting(tmp_path, 4)
            said = capfd.readouterr().err
            t.tried(again.kept() == whole and again.begun == (3 if name == 'last.pt' else 4) and name in said, how)


def test_where_both_saved_states_are_damaged_a_line_says_what_to_do(tmp_path, dice):
    folder = Sitting(tmp_path, 3, resume=False).run.folder
    (folder / 'result.json').unlink()
    for name in ('last.pt', 'previous.pt'):
        damage(folder / name, 'a bit', dice)
    with pytest.raises(UserError, match='--run NAME'):
        Sitting(tmp_path, 3)


def test_between_two_renames_the_state_before_is_the_only_one(tmp_path):
    folder = Sitting(tmp_path, 3, resume=False).run.folder
    for name in ('last.pt', 'result.json'):
        (folder / name).unlink()
    assert Sitting(tmp_path, 3).begun == 2


def test_damaged_rows_of_the_log_are_told_and_dropped(tmp_path, dice, capfd):
    folder = Sitting(tmp_path, 3, resume=False).run.folder
    flip(folder / 'metrics.jsonl', 400)
    with pytest.raises(Damaged):
        read_json_lines(folder / 'metrics.jsonl')
    (folder / 'result.json').unlink()
    Sitting(tmp_path, 3)
    assert [row['epoch'] for row in read_json_lines(folder / 'metrics.jsonl')] in ([1, 3], [2, 3])
    assert '1 of its 3 rows' in capfd.readouterr().err


@pytest.mark.parametrize('loss, weight', [(float('nan'), 1.0), (1.0, float('inf'))])
def test_numbers_that_go_bad_end_the_run_soon_and_are_never_saved(loss, weight, tmp_path, monkeypatch):
    monkeypatch.setattr('training.CHECKED', 2)
    folder = Sitting(tmp_path, 1, resume=False).run.folder
    before = (folder / 'last.pt').read_bytes()
    run = Run(Settings(output_dir=str(tmp_path), run='r', resume=True, epochs=1, seed=0, tensorboard=False, save_minutes=10), 'r', CPU)
    net = build('lenet5half', 3, 10, 1)
    run.start('student', net, MNIST.facts('MNIST', 'lenet5half', 3))
    with pytest.raises(UserError) as error:
        for step in range(9):
            with torch.no_grad():
                net.linear.weight.fill_(weight) if hasattr(net, 'linear') else next(net.parameters()).fill_(weight)
            run.step_done(8, 1.0, 0.1, loss_kd=torch.tensor(loss if step else 1.0))
    run.lock.release()
    named = ('loss_kd' if weight == 1 else 'weight', 'step 3', str(folder / 'last.pt'), 'of step 1')
    assert all(part in str(error.value) for part in named)
    assert (folder / 'last.pt').read_bytes() == before


# ---------------------------------------------------------------- the cache and the selection


@pytest.fixture
def pool(tmp_path, pool_of, monkeypatch):
    """A function that opens a pool of three parts, which one folder of a cache keeps."""
    monkeypatch.setattr(decode, 'CHUNK', 8)
    write_images(tmp_path / 'wild', 20)
    (tmp_path / 'wild' / '005.png').write_bytes(b'no image')
    pool_of(tmp_path / 'wild')
    return lambda: pool_of(tmp_path / 'wild')


def content(pool):
    return pool.take(np.arange(len(pool))).numpy().tobytes(), [*pool.names()]


@pytest.mark.parametrize('name, decoded_again', [('000001.npy', range(8, 16)), ('000001.txt', range(8, 16)), ('000000.skipped', range(8)),
                                                 ('parts.json', ())])
def test_a_damaged_cache_is_rebuilt_in_its_damaged_parts(name, decoded_again, pool, tally, tries, dice, tmp_path, decoded, capfd):
    whole, file = content(pool()), next((tmp_path / 'cache').glob(f'*/{name}'))
    with tally('damaged cache', f'a part: .{name.split(".")[1]}' if '0' in name else name) as t:
        for how in (*HOW, *(['gone'] if name != '000000.skipped' else [])) * tries(1, 10):
            file.unlink() if how == 'gone' else damage(file, how, dice)
            decoded.clear()
            capfd.readouterr()
            same, said = content(pool()) == whole, capfd.readouterr().err
            read = {Path(path).name for path in decoded}
            t.tried(same and read == {f'{i:03}.png' for i in decoded_again} and (name in said or name == '000000.skipped'), how)


@pytest.mark.parametrize('names', [('000000.npy', '000001.npy'), ('parts.json', '000001.npy')])
@pytest.mark.parametrize('how', [*HOW, 'gone'])
def test_damage_to_two_files_of_a_cache_costs_their_parts_alone(names, how, pool, dice, tmp_path, decoded):
    whole, folder = content(pool()), next((tmp_path / 'cache').glob('*/parts.json')).parent
    for name in names:
        (folder / name).unlink() if how == 'gone' else damage(folder / name, how, dice)
    decoded.clear()
    assert content(pool()) == whole
    assert {int(Path(path).stem) // 8 for path in decoded} == {int(name[:6]) for name in names if name.endswith('npy')}
    decoded.clear()
    assert content(pool()) == whole and not decoded


def test_a_pool_is_told_by_its_digest_where_a_part_is_gone_or_empty(pool, tmp_path):
    digest = pool().digest()
    file = next((tmp_path / 'cache').glob('*/000001.npy'))
    for harm in (file.unlink, lambda: file.write_bytes(b'')):
        harm()
        assert pool().digest() == digest


def test_a_damaged_part_whose_files_are_gone_is_told(pool, tmp_path, dice):
    pool()
    damage(next((tmp_path / 'cache').glob('*/000001.npy')), 'a bit', dice)
    opened = pool()
    for path in (tmp_path / 'wild').glob('01*.png'):
        path.unlink()
    with pytest.raises(UserError):
        content(opened)


def test_a_set_is_rebuilt_too(tmp_path, pool_of, dice):
    whole = content(pool_of('noise', channels=1, size=8))
    for name in ('000000.npy', '000000.txt'):
        damage(next((tmp_path / 'cache').glob(f'*/{name}')), 'a bit', dice)
        assert content(pool_of('noise', channels=1, size=8)) == whole


@pytest.mark.parametrize('name', ['scores', 'selection.npz'])
def test_damaged_scores_and_selections_are_made_again(name, pool, tally, tries, dice, tmp_path):
    teacher = teacher_of(lambda x: x.flatten(1)[:, :10], 3 * (0.0,), 3 * (1 / 255,))
    (tmp_path / 'run').mkdir()

    def select():
        selection = score_and_select(tmp_path / 'run', pool(), teacher, Rule('balanced', 10, 0))
        return [x.tobytes() for x in selection[1:5]]

    whole = select()
    with tally('damaged', name) as t:
        for how in HOW * tries(1, 10):
            for file in [*tmp_path.glob('cache/*/*.scores-*'), tmp_path / 'run' / 'selection.npz']:
                file.unlink() if name == 'scores' and file.name == 'selection.npz' else damage(file, how, dice)
            t.tried(select() == whole, how)


def test_statistics_are_measured_again(tmp_path, dice):
    parts = decode_files(write_images(tmp_path / 'wild', 4), (32, 3), tmp_path / 'cache', 'x', Decoder(0))
    whole = statistics(parts)
    for how in HOW:
        damage(next(tmp_path.glob('cache/*/statistics.json')), how, dice)
        assert statistics(parts) == whole


def test_an_empty_object_is_written_and_read(tmp_path):
    write_json(tmp_path / 'x', {})
    assert read_json(tmp_path / 'x') == {}
