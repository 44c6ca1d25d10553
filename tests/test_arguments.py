"""The scripts' arguments, and the settings that come of them."""

import argparse
from types import SimpleNamespace

import pytest
from images import error_of

import arguments
from arguments import at_least, count_of, name_in


def parser():
    p = arguments.Parser('a test')
    p.add_argument('--num_select', type=at_least(int, 1), default=7, help='how many')
    p.add_argument('--teacher_dir', help='where')
    p.add_argument('--lr', type=at_least(float, 0, strict=True))
    p.add_argument('--dataset', type=name_in(('MNIST', 'cifar10', 'cifar100')))
    return p


@pytest.mark.parametrize('given, expected', [
    (['--num_selct', '5'], '--num_select?'), (['--num-select=5'], '--num_select?'), (['--teacherdir', 'a', '--lr', '1'], '--teacher_dir?'),
    (['--num', '5'], '--num'),  # no abbreviations either
    (['--zzz'], '--help'), (['--use_ori'], '--transfer_set original'), (['stray\nword'], 'stray word'),
    (['--dataset', 'cifer10'], 'cifar10?'), (['--dataset', 'imagenet'], 'MNIST, cifar10, cifar100'),
    (['--num_select', '0'], '1'), (['--num_select', 'many'], 'many'), (['--num_select', '1.5'], '1.5'), (['--lr', '0'], '0'),
    (['--lr', 'nan'], 'nan'), (['--lr', 'inf'], 'inf'), (['--lr'], '--lr'),
])
def test_a_wrong_argument_is_one_line_and_exit_2(given, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(given)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == '' and err.count('\n') == 1 and expected in err and 'error' in err


def test_help_names_the_defaults_that_there_are(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(['--help'])
    text = capsys.readouterr().out
    assert 'how many (default: 7)' in text and 'where' in text and 'None' not in text


@pytest.mark.parametrize('words, named', [
    (['--teacher_dir', ''], '--teacher_dir'), (['--wild', 'a', ''], '--wild'), (['--no-export_normalise'], '--export'),
    (['--cache_dir', 'a\udcff'], '--cache_dir')])
def test_a_value_that_is_empty_or_has_no_effect_is_told(words, named):
    p = parser()
    arguments.add_student_arguments(p)
    p.add_argument('--wild', nargs='+')
    p.add_argument('--cache_dir')
    assert named in error_of(p.parse_args, words)
    assert not p.parse_args(['--no-export_normalise', '--export', 'onnx']).export_normalise


@pytest.mark.parametrize('text, count', [('7', 7), ('47%', '47%'), ('12.50%', '12.5%'), ('100%', '100%')])
def test_a_count_is_a_number_or_a_share(text, count):
    assert count_of(text) == count


@pytest.mark.parametrize('text', ['0', '-1', '1.5', 'many', '%', '0%', '101%', 'nan%', '-5%', '1e3'])
def test_what_is_no_count(text):
    with pytest.raises((ValueError, argparse.ArgumentTypeError)):
        count_of(text)


@pytest.mark.parametrize('text, name', [('mnist', 'MNIST'), ('CIFAR10', 'cifar10'), ('cifar100', 'cifar100')])
def test_a_name_is_found_in_any_case(text, name):
    assert parser().parse_args(['--dataset', text]).dataset == name


def test_settings_are_recipe_then_flags_zero_and_false_too_then_what_follows_from_both():
    recipe = dict(epochs=10, lr=0.1, augment=True, ie=5.0, arch='a')
    args = SimpleNamespace(epochs=3, lr=None, augment=False, ie=0.0, wild=None, arch=None, tensorboard=False)
    settings = arguments.settle(args, recipe, arch='b')
    assert vars(settings) == dict(epochs=3, lr=0.1, augment=False, ie=0.0, wild=None, arch='b',
                                  tensorboard=False)
    assert recipe['epochs'] == 10 and vars(settings.replace(lr=1)) == vars(settings) | {'lr': 1}
    with pytest.raises(AttributeError, match='lr'):
        settings.lr = 2


@pytest.mark.parametrize('flip, augment, wrong', [(True, False, True), (True, True, False), (False, False, False), (None, False, False)])
def test_a_flip_without_augmentation_is_told(flip, augment, wrong):
    args = SimpleNamespace(flip=flip, augment=None)
    if wrong:
        assert '--flip' in error_of(arguments.settle, args, {'augment': augment}, flip=True)
    else:
        assert arguments.settle(args, {'augment': augment}, flip=True).augment == augment
