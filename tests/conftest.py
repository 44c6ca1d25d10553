"""What every test module needs: our modules on the path, and one thread, so that small tests don't wait for each other."""
import multiprocessing
import sys
import urllib.request
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import keep.stops  # noqa: F401  # here, and not by a script under test, whose signals it would take

torch.set_num_threads(1)


@pytest.fixture
def call_main(tmp_path, monkeypatch):
    """Calls the main of a script's module in tmp_path, as its command does, and returns what `capture`, capsys or capfd, has of stdout and
    stderr."""
    def call(script, words, capture, code):
        import utils

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', [Path(script.__file__).name, *words])
        with pytest.raises(SystemExit) as done:
            utils.run_script(script.main)
        out, err = capture.readouterr()
        assert done.value.code == code, err
        return out, err

    return call


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(urllib.request, 'urlopen', Mock(side_effect=URLError('no network')))


@pytest.fixture
def wild_of(tmp_path):
    """The Wild of some sources, with the test's own cache."""
    from wild.pool import Wild
    from wild.reading import Decoder

    def wild(*sources, channels=3, workers=0, cache_dir=tmp_path / 'cache', size=32, **limits):
        return Wild([str(s) for s in sources], size, channels, str(tmp_path / 'data'), str(cache_dir), Decoder(workers, **limits))

    return wild


@pytest.fixture
def pool_of(wild_of):
    from wild.pool import open_pool

    return lambda *sources, **how: open_pool(wild_of(*sources, **how))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """A file system that fails is tried again at once."""
    monkeypatch.setattr('wild.reading.PAUSES', (0,))


@pytest.fixture
def decoded(monkeypatch):
    """The paths of the image files that are read from now on."""
    from wild import reading

    opened, original = [], reading.read_file
    monkeypatch.setattr(reading, 'read_file', lambda path, *a: opened.append(path) or original(path, *a))
    return opened


@pytest.fixture
def interrupted(monkeypatch):
    """interrupted(n, call): the call is stopped by Ctrl-C when n images are decoded."""
    from wild import decode, reading

    def interrupt(count, call):
        original, left = decode.to_array, iter(range(count))

        def stopped(*a):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return original(*a)

        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            for module in (decode, reading):
                m.setattr(module, 'to_array', stopped)
            call()

    return interrupt


@pytest.fixture
def fork():
    if 'fork' not in multiprocessing.get_all_start_methods():
        pytest.skip('no fork here')
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method('fork', force=True)
    yield
    multiprocessing.set_start_method(before, force=True)
