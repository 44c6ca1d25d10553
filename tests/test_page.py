"""report.py --html on small, made-up runs: what the page says, names that would do harm, and how a browser shows it."""

import html.parser
import json
import re
import shutil

import numpy as np
import pytest
from test_report import add_files, make_run

import report as script
from paper.results import publish

pytest.importorskip('matplotlib')


class Parsed(html.parser.HTMLParser):
    """A page's elements and its text, as a browser takes them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ''
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data + '\n'

    def values(self, tag, attribute):
        return [attributes.get(attribute) for name, attributes in self.elements if name == tag]


@pytest.fixture
def page(tmp_path, capsys, call_main):
    """The page of a path in tmp_path, parsed."""
    def call(path):
        call_main(script, ['--runs', str(path), '--html'], capsys, 0)
        return Parsed((tmp_path / 'report' / 'report.html').read_text(encoding='utf-8'))

    return call


WITHOUT = dict(top1=None, top1_best=None, dataset='none')


@pytest.mark.parametrize('method, values, words', [
    ('dfnd', dict(num_select=2000, wild_images=12000), ('95.00 % top-1', '98.00 %', '-3.00 points', '2,000 of 12,000', 'demo', 'balanced')),
    ('dfnd', dict(agreement=91.5, **WITHOUT), ('91.50 % agreement', 'no test data')),
    ('dfnd', WITHOUT, ('There is no test data',)),
    ('dfnd', dict(finished=False, settings=dict(dataset='cifar10', num_select=7, transfer_set='wild', epochs=30)),
     ('Unfinished: 3 of 30 epochs', '93.00 % top-1', 'no original image', 'cifar10')),
    ('dfnd', dict(finished=False, settings=dict(dataset='cifar10', transfer_set='original')), ('93.00 % top-1', 'and its teacher')),
    ('DAFL-train', dict(finished=False, settings=dict(dataset='cifar10')), ('generator',)),
    ('teacher-train', dict(finished=False, settings=dict(dataset='cifar10')), ('The teacher', 'labels')),
    ('teacher', {}, ('The teacher', '95.00 % top-1', 'labels')),
    ('student', {}, ('The student', '95.00 % top-1', 'labels')),
    ('kd', dict(teacher_top1=94.0), ('+1.00 points',)),
    ('dafl', {}, ('generator', '95.00 % top-1')), ('dfad', {}, ('generator', 'no original image')),
    ('inverted', {}, ('batch norms',)),
    ('pu-compression', dict(num_select=2000, labelled_images=300, wild_images=9000), ('2,000 images, 300 of them original', '9,000'))])
def test_the_verdict_comes_first(tmp_path, page, monkeypatch, method, values, words):
    monkeypatch.setattr('paper.page.add_curves', lambda body, rows: None)  # which take a second
    rows = [{'epoch': e, 'step': 40 * e, 'top1': None if e == 1 else 90.0 + e} for e in (1, 2, 3)]
    (make_run(tmp_path, 'a-s0', method, **values) / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    seen = page('a-s0')
    verdict = seen.text.split('Runs and speed')[0]
    assert all(word in verdict for word in words), verdict
    assert all(word in seen.text for word in (f'{method}.py', 'Some CPU', 'commit abc'))


def test_a_run_that_has_only_begun(tmp_path, page):
    make_run(tmp_path / 'runs', 'a-s0', finished=False, settings=dict(dataset='cifar10', epochs=9))
    assert 'Nothing is measured yet' in (text := page('runs').text) and '0 of 9 epochs' in text and 'Curves' not in text


def test_a_folder_of_runs_has_their_rows_pictures_speed_and_commands(tmp_path, page):
    runs = tmp_path / 'runs'
    for seed, top1 in enumerate((90.0, 91.0)):
        add_files(make_run(runs, f'dfnd-s{seed}', top1=top1), classes=10)
    make_run(runs, 'random-s0', select='random', top1=89.0)
    make_run(runs, 'teacher-s0', 'teacher', top1=98.0)
    make_run(runs, 'dfnd-s2', finished=False, settings=dict(dataset='mnist5k', transfer_set='wild'))
    (runs / 'random-s0' / 'metrics.jsonl').write_text(''.join(json.dumps({'epoch': e, 'step': e, 'images_per_s': x}) + '\n'
                                                               for e, x in enumerate((5000.0, 7000.0, 6000.0), 1)))
    seen = page('runs')
    assert '90.50 ± 0.71' in seen.text and '+1.50' in seen.text  # of the two finished ones
    assert '6,000' in seen.text and 'unfinished' in seen.text and seen.text.count('commit abc') == 5
    assert seen.text.index('teacher.py') < seen.text.index('dfnd.py')  # in the order to run them
    assert 'class 3: 6 of 6' in seen.text and 'class 4: 0 of 6' in seen.text and '30 of 60' in seen.text
    assert seen.values('img', 'alt')[0].startswith('Accuracy') and len(seen.values('img', 'src')) == 2 + 4 * 9 + 1
    publish(runs / 'dfnd-s0', tmp_path / 'published.jsonl')
    assert len(page('published.jsonl').values('img', 'src')) == 2  # which has the curves alone


HOSTILE = ['<script>alert(1)</script>', '"\'><img src=x onerror=alert(1)>', '&amp; &', '\x1b[31mred\x07', 'a\u202egnp', '$\\frac$',
           '\udcff', '</style></title>', 'http://example.org/', 'newline\nin it']


def test_names_from_data_are_shown_and_never_obeyed(tmp_path, page):
    name = HOSTILE[1].replace('/', '') + '\x1b$\\frac$'
    folder = make_run(tmp_path / HOSTILE[0].replace('/', ''), f'{name}-s0', dataset=HOSTILE[0], wild=HOSTILE[1], wild_images=60,
                      num_select=30)
    add_files(folder, classes=len(HOSTILE))
    arrays = dict(np.load(folder / 'thumbnails.npz'))
    np.savez(folder / 'thumbnails.npz', **arrays | {'class_names': np.array(HOSTILE)})
    config = json.loads((folder / 'config.json').read_text())
    config |= {'command': HOSTILE[0], 'commit': HOSTILE[1], 'hardware': {'name': HOSTILE[0]}, 'versions': {'a': HOSTILE[3]}}
    (folder / 'config.json').write_text(json.dumps(config))
    seen = page(folder.parent)
    assert {tag for tag, _ in seen.elements} <= {
        'html', 'head', 'body', 'meta', 'link', 'title', 'style', 'h1', 'h2', 'h3', 'p', 'div', 'table', 'tr', 'th', 'td', 'img', 'figure',
        'figcaption', 'meter', 'pre'}
    assert all(src.startswith('data:image/png;base64,') for src in seen.values('img', 'src'))
    assert {key for _, attributes in seen.elements for key in attributes} <= {
        'lang', 'charset', 'http-equiv', 'content', 'name', 'rel', 'href', 'class', 'alt', 'src', 'max', 'value'}
    for text in HOSTILE[:3] + ['\\u001b[31mred\\u0007', 'a\\u202egnp', '$\\frac$', '\\udcff', 'newline\nin it']:
        assert text in seen.text
    assert not re.search('[\x00-\x09\x0b-\x1f\u202e]', seen.text)


@pytest.mark.parametrize('name', ['selection.npz', 'thumbnails.npz', 'adaptation.npy'])
def test_a_damaged_file_of_a_run_is_one_line(tmp_path, capsys, call_main, name):
    add_files(folder := make_run(tmp_path / 'runs', 'a-s0'), classes=10)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    line = call_main(script, ['--html'], capsys, 2)[1]
    assert 'error: ' in line and 'damaged' in line and line.count('\n') == 1


@pytest.mark.parametrize('width', [360, 1280])
def test_a_browser_shows_it_without_a_request_an_error_or_a_scrollbar(tmp_path, page, width):
    api = pytest.importorskip('playwright.sync_api')
    add_files(make_run(tmp_path / 'runs', 'a-rather-long-name-of-a-run-with-every-flag-in-it-' * 3 + '-s0'), classes=100)
    make_run(tmp_path / 'runs', 'teacher-s0', 'teacher')
    page('runs')
    said, asked = [], []
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which('chromium'))  # None: playwright's own
        except api.Error as e:
            pytest.skip(f'no browser here: {e.message.splitlines()[0]}')
        tab = browser.new_page(viewport={'width': width, 'height': 800})
        tab.on('console', lambda message: said.append(message.text))
        tab.on('pageerror', lambda error: said.append(str(error)))
        tab.on('request', lambda request: asked.append(request.url))
        tab.goto((tmp_path / 'report' / 'report.html').as_uri())
        wide, empty, small = tab.evaluate('''() => [document.documentElement.scrollWidth,
            [...document.images].filter(image => !image.naturalWidth).length,
            [...document.querySelectorAll('p, td, figcaption')].filter(e => parseFloat(getComputedStyle(e).fontSize) < 11).length]''')
        browser.close()
    assert wide == width and empty == small == 0 and said == []
    assert [url for url in asked if not url.startswith('data:')] == [(tmp_path / 'report' / 'report.html').as_uri()]
