"""What every test module needs: our flat modules on the path, and one thread, so that small tests don't wait for each other."""
import multiprocessing
import sys
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(1)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*a, **k):
        raise URLError('no network')

    monkeypatch.setattr(urllib.request, 'urlopen', refuse)


@pytest.fixture
def pool_of(tmp_path):
    """Opens a pool with the test's own cache."""
    from wild import open_pool

    def opened(*sources, channels=3, workers=0, data_dir=None):
        return open_pool([str(s) for s in sources], channels, str(data_dir or tmp_path / 'data'), str(tmp_path / 'cache'), workers)

    return opened


@pytest.fixture
def decoded(monkeypatch):
    """The paths of the files that are opened from now on."""
    opened, original = [], Image.open
    monkeypatch.setattr(Image, 'open', lambda path, *a, **k: opened.append(str(path)) or original(path, *a, **k))
    return opened


@pytest.fixture
def fork():
    if 'fork' not in multiprocessing.get_all_start_methods():
        pytest.skip('no fork here')
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method('fork', force=True)
    yield
    multiprocessing.set_start_method(before, force=True)
