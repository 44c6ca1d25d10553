"""A run's folder before the run: whether it holds one that is gone on with."""

import os
from pathlib import Path

import distributed
from utils import Damaged, UserError, read_json

SAVED = ('last.pt', 'previous.pt')  # the state at the last save, and at the one before


def is_longer(old, new, changed):
    """Whether settings differ in nothing but more epochs, of which the first ones are the same: by another schedule, every learning rate
    depends on how many are to come, and --steps can end an epoch in its middle."""
    whole = old.get('steps') is None or old['steps'] * new['epochs'] == new['steps'] * old['epochs']
    return {*changed} <= {'epochs', 'steps'} and old.get('schedule') == 'constant' and new['epochs'] > old['epochs'] and whole


def folder_of(settings, name):
    """Of a run. name: where --run gives none."""
    return Path(settings.output_dir) / (settings.run or name)


def is_begun(folder):
    """Whether a run's folder holds what --resume goes on with."""
    return any((folder / name).is_file() for name in (*SAVED, 'selection.npz', 'result.json'))


def check_unused(folder, resume):
    """Raises UserError for a run's folder that holds another run, where this one is not to go on with it."""
    if is_begun(folder) and not (resume or is_started_again(folder / 'config.json')):
        raise UserError(f'{folder} is in use: add --resume to go on with it, or --run NAME for another folder')


def settings_before(settings, name):
    """The settings of the run that this one goes on with; {} for none. Raises as check_unused."""
    folder = folder_of(settings, name)
    check_unused(folder, settings.resume)
    config = folder / 'config.json'
    return read_config(config)['settings'] if is_begun(folder) and config.is_file() else {}


def is_started_again(config_file):
    """Whether torchrun started this process after it, or another one, ended early in this run: that goes on without --resume."""
    again = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') != '0' and config_file.is_file()
    return again and read_config(config_file).get('torchrun') == distributed.torchrun()


def read_config(file):
    """What a run's config.json holds, with its settings. Raises UserError where it is damaged."""
    try:
        config = read_json(file)
        config['settings'] = dict(config.get('settings') or config['args'])  # args: as they were called until November 2026
        return config
    except (Damaged, LookupError, TypeError, ValueError):
        raise UserError(f'{file} is damaged: delete it, and --resume writes it again with the settings of your command, or give --run NAME '
                        'for another folder') from None
