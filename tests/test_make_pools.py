"""The pools of which a share is of other kinds, as lists of paths that --wild takes."""
import os
from pathlib import Path

import numpy as np
import pytest
from images import error_of, write_images
from PIL import Image
from scripts import command

from utils import UserError
from wild import kinds, make_pools


def made(monkeypatch, out, *words):
    monkeypatch.setattr('sys.argv', ['make_pools', *map(str, words), '--out', str(out)])
    make_pools.main()
    return {int(file.stem[-2:]): file.read_text(errors='surrogateescape').split() for file in sorted(out.glob('share-*.txt'))}


def test_a_pool_has_its_share_of_other_kinds_and_the_same_seed_gives_it_again(tmp_path, monkeypatch, capsys):
    for name in ('photos', 'faces', 'glyphs'):
        write_images(tmp_path / name, 40)
    words = ['--relevant', tmp_path / 'photos', '--others', tmp_path / 'faces', '--characters', tmp_path / 'glyphs', '--size', 40]
    pools = made(monkeypatch, tmp_path / 'one', *words)
    assert '5 pools of 40' in capsys.readouterr().out and list(pools) == [0, 50, 80, 95, 99]
    for share, paths in pools.items():
        assert len(set(paths)) == 40 and all(Path(path).is_file() for path in paths)
        assert sum(Path(path).parent.name != 'photos' for path in paths) == 40 * share // 100
    assert set(pools[0]) > set(pools[50]) - set(pools[99])  # the relevant images that stay are the same ones
    again = made(monkeypatch, tmp_path / 'two', *words)
    assert [[path.replace('/two/', '/one/') for path in paths] for paths in again.values()] == list(pools.values())
    with pytest.raises(UserError, match='lower --size, or name more folders'):
        made(monkeypatch, tmp_path / 'three', *words, '--size', 400)


@pytest.mark.parametrize('words, part', [(('--size', '-4'), '--size -4'), (('--shares', '0', '101'), '0 101'),
                                         (('--characters', 'gone'), 'gone: no such folder')])
def test_mistakes_are_told_before_anything_is_drawn(tmp_path, monkeypatch, words, part):
    with pytest.raises(UserError, match=part):
        made(monkeypatch, tmp_path / 'out', '--relevant', str(tmp_path), *words)
    assert not (tmp_path / 'out').exists()


def test_a_character_that_can_not_be_read_is_named(tmp_path):
    (tmp_path / 'a.png').write_text('no image')
    assert 'a.png can not be read' in error_of(make_pools.character, [str(tmp_path / 'a.png')], np.random.default_rng(0), 32)


def test_names_that_are_no_utf_8_and_pieces_larger_than_a_photo(tmp_path, monkeypatch):
    write_images(tmp_path / 'glyphs', 12, grey=True)
    os.rename(tmp_path / 'glyphs' / sorted(os.listdir(tmp_path / 'glyphs'))[0], os.fsencode(tmp_path / 'glyphs') + b'/caf\xe9.png')
    made(monkeypatch, tmp_path / 'out', '--channels', 1, '--relevant', str(tmp_path / 'glyphs'), '--size', 12, '--shares', 0)
    assert b'/caf\xe9.png\n' in (tmp_path / 'out/share-00.txt').read_bytes()
    photos = [Image.fromarray(np.full((30, 40), 7, np.uint8))]
    assert {kinds.patch(np.random.default_rng(seed), photos, 96).shape for seed in range(20)} == {(96, 96, 1)}


def test_it_runs_as_a_command(tmp_path):
    write_images(tmp_path / 'glyphs', 12, grey=True)
    done = command('-m', 'wild.make_pools', '--channels', 1, '--relevant', tmp_path / 'glyphs', '--size', 8, '--shares', 0, '--out',
                   'pools', cwd=tmp_path)
    assert '1 pools of 8' in done.stdout
