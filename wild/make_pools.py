"""Pools of one size in which a growing share of the images is of other kinds than the teacher's: for `reproduce.py pools`.

    python -m wild.make_pools --channels 3 --relevant PHOTOS --characters GLYPHS --others FACES DRAWINGS --out pools-cifar10
    python -m wild.make_pools --channels 1 --relevant GLYPHS --others PHOTOS --out pools-mnist

Draws textures, noise and, with --characters, coloured characters and pages of them, as PNG below --out, and writes each pool as a list of
paths, share-00.txt, share-50.txt, ..., which --wild takes. The same folders and seed give the same pools.
"""

import argparse
import functools
import itertools
import os
from pathlib import Path

import numpy as np
from PIL import Image

from utils import UserError, bad_usage, first_line, run_script, say, written_aside
from wild.kinds import SIZE, coloured, noise, page, texture
from wild.reading import Decoder
from wild.sources import find_images


def write(folder, images):
    """Writes the images as PNG into 100 folders. Returns their paths."""
    paths = []
    for i, image in enumerate(images):
        path = folder / f'{i % 100:02}' / f'{i:06}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(path)
        paths.append(str(path))
    return paths


def some(folder, random, count):
    """The paths of up to `count` images of a folder, in a random order."""
    paths = list(find_images(folder, Decoder()))
    return [os.path.abspath(paths[i]) for i in random.permutation(len(paths))[:count]]


def character(paths, random, size):
    """One of them, (size, size) in 0..1. Raises UserError for one that can't be read."""
    path = paths[random.integers(len(paths))]
    try:
        return np.asarray(Image.open(path).convert('L').resize((size, size), Image.BILINEAR)) / 255
    except (OSError, ValueError) as e:
        raise UserError(f'{path} can not be read ({first_line(e)}): take it out of --characters') from None


def parse():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = bad_usage
    parser.add_argument('--relevant', required=True, metavar='DIR', help='images that suit the data set')
    parser.add_argument('--others', nargs='*', default=[], metavar='DIR', help='images of other kinds, taken as they are')
    parser.add_argument('--characters', metavar='DIR', help='characters, light on dark: coloured, and as pages')
    parser.add_argument('--channels', type=int, choices=(1, 3), default=3, help='3, colour, or 1 (default: 3)')
    parser.add_argument('--shares', type=int, nargs='+', default=(0, 50, 80, 95, 99), metavar='N',
                        help='percent of other kinds (default: 0 50 80 95 99)')
    parser.add_argument('--size', type=int, default=25_000, metavar='N', help='images of each pool (default: 25000)')
    parser.add_argument('--seed', type=int, default=0, help='what is drawn and taken depends on it (default: 0)')
    parser.add_argument('--out', required=True, metavar='DIR', help='where the images and the lists are written')
    args = parser.parse_args()
    if gone := [folder for folder in (args.relevant, *args.others, args.characters) if folder and not Path(folder).is_dir()]:
        raise UserError(f'{", ".join(gone)}: no such folder of images: correct --relevant, --others or --characters')
    if args.size < 1 or not all(0 <= share <= 100 for share in args.shares):
        raise UserError(f'--size {args.size} --shares {" ".join(map(str, args.shares))}: expected an image or more, and percent')
    return args


def main():
    args = parse()
    random, out, drawn = np.random.default_rng(args.seed), Path(args.out).resolve(), args.size // 4
    kinds = {folder: some(folder, random, args.size) for folder in args.others}
    kinds['textures'] = write(out / 'textures', (texture(random, args.channels) for _ in range(drawn)))
    kinds['noise'] = write(out / 'noise', (noise(random, args.channels) for _ in range(drawn // 2)))
    if args.characters:
        one = functools.partial(character, some(args.characters, random, args.size), random)
        kinds['characters'] = write(out / 'characters', (coloured(one(SIZE), random, args.channels) for _ in range(drawn)))
        kinds['pages'] = write(out / 'pages', (page(random, args.channels, one) for _ in range(drawn // 2)))
    relevant, others = some(args.relevant, random, args.size), list(itertools.chain.from_iterable(kinds.values()))
    others = [others[i] for i in random.permutation(len(others))]
    out.mkdir(parents=True, exist_ok=True)
    for share in args.shares:
        wrong = args.size * share // 100
        if wrong > len(others) or args.size - wrong > len(relevant):
            raise UserError(f'a pool with {share} % of other kinds needs {args.size - wrong} relevant images and {wrong} others, and there '
                            f'are {len(relevant)} and {len(others)}: lower --size, or name more folders')
        with written_aside(out / f'share-{share:02}.txt', 'w', encoding='utf-8', errors='surrogateescape') as file:
            file.write('\n'.join(relevant[: args.size - wrong] + others[:wrong]) + '\n')
    say(f'{len(args.shares)} pools of {args.size} in {out}: {len(relevant)} relevant images; ' + ', '.join(
        f'{Path(kind).name} {len(paths)}' for kind, paths in kinds.items()))


if __name__ == '__main__':
    run_script(main)
