"""The house: what may import what, and how long things may get."""

import ast

import pytest
from scripts import ROOT

# a file imports from those before it alone
ORDER = ['keep.stops', 'utils', 'recipes', 'distributed', 'keep.origin', 'keep.begun', 'training', 'resnet', 'lenet', 'generator', 'losses',
         'networks', 'paper.fits', 'paper.figures', 'paper.board', 'arguments', 'wild.workers', 'wild.pixels', 'wild.reading', 'wild.parts',
         'wild.decode', 'wild.sources', 'wild.kinds', 'wild.demo', 'wild.pool', 'wild.classes', 'data', 'own.weights', 'own.made',
         'own.spec', 'own.probe', 'own.teacher', 'own.student', 'runs', 'keep.chosen', 'selection', 'wild.make_pools', 'wild.stream',
         'own.export', 'own.estimate', 'rivals.pu', 'rivals.inversion', 'teacher-train', 'DFND-train', 'DAFL-train', 'paper.rows',
         'paper.results', 'paper.tables', 'paper.bench_tables', 'paper.page', 'reproduce', 'report', 'bench.measure', 'bench.plain',
         'bench.speed', 'bench.scale']
# and, where one of these begins its name, from what begins with these
ONLY = {**dict.fromkeys(('resnet', 'lenet', 'generator', 'losses'), ()), 'selection': ('keep.', 'utils', 'distributed', 'training'),
        'paper.': ('utils', 'paper.'), 'report': ('utils', 'paper.'), 'reproduce': ('keep.', 'utils', 'recipes', 'paper.', 'wild.pool')}
PLACES = ('*.py', 'keep/*.py', 'own/*.py', 'wild/*.py', 'rivals/*.py', 'paper/*.py', 'bench/*.py')
FILES = sorted(path for place in PLACES for path in ROOT.glob(place))


def imported(tree):
    """The names of our files that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in ORDER)
        elif isinstance(node, ast.ImportFrom):
            names = {f'{node.module}.{name.name}' for name in node.names} & set(ORDER)
            yield from names or ({node.module} & set(ORDER))


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short_takes_few_parameters_and_imports_downwards(path):
    text = path.read_text(encoding='utf-8')
    tree, name = ast.parse(text), '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    assert len(text.splitlines()) <= 300, 'take a part of it into a file of its own'
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            a = node.args
            names = {arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if arg} - {'self', 'cls'}
            assert len(names) <= 6, (node.lineno, names, 'at most six parameters')
        if isinstance(node, ast.FunctionDef) and node.name == 'main':
            assert node.end_lineno - node.lineno < 110
    if path.name == '__init__.py':
        assert text == ''  # no re-export
        return
    assert name in ORDER, 'a new file: give it its place in ORDER'
    ours, above = set(imported(tree)), set(ORDER[: ORDER.index(name)])
    assert ours <= above, 'it imports from files that are not above it in ORDER'
    for begin, allowed in ONLY.items():
        assert not name.startswith(begin) or all(other.startswith(allowed) for other in ours), begin


def test_the_top_is_taken_in_at_a_glance():
    assert len(list(ROOT.glob('*.py'))) <= 18
