"""What more images would bring: a power law through the last points of learning curves, and its error. Standard library only."""

import math
import statistics
from typing import NamedTuple

LAST = 3  # points of a run's curve that a fit takes: its end


class Fit(NamedTuple):
    """top-1 = ceiling - b * n^-c by least squares of logarithms; n: images seen. ceiling: the teacher's top-1, in percent."""
    ceiling: float
    log_b: float
    c: float
    c_error: float  # standard error of c
    spread: float  # of the points around the line, in logarithms, by n - 2 degrees of freedom
    count: int  # of points
    first: float  # images seen at the first of them
    middle: float  # mean of log n
    square: float  # sum of (log n - middle)^2

    def at(self, n):
        """(top-1 in percent, its low, its high): by the line, one standard error of a new run away from it."""
        x = math.log(n)
        away = self.spread * math.sqrt(1 + 1 / self.count + (x - self.middle) ** 2 / self.square)
        return tuple(max(0.0, self.ceiling - math.exp(self.log_b - self.c * x + sign * away)) for sign in (0, 1, -1))


def fit(points, ceiling=100.0):
    """The Fit of (images seen, top-1 in percent), or None where they can't have one: fewer than three, or all at nearly one number of
    images. What reaches the ceiling has no logarithm, and is left out."""
    pairs = [(math.log(n), math.log(ceiling - top1)) for n, top1 in points if n > 0 and top1 < ceiling]
    if len(pairs) < 3 or max(pairs)[0] - min(pairs)[0] < math.log(1.05):
        return None
    xs, ys = zip(*pairs)
    middle, mean = statistics.mean(xs), statistics.mean(ys)
    square = sum((x - middle) ** 2 for x in xs)
    slope = sum((x - middle) * (y - mean) for x, y in pairs) / square
    spread = math.sqrt(sum((y - mean - slope * (x - middle)) ** 2 for x, y in pairs) / (len(pairs) - 2))
    return Fit(ceiling, mean - slope * middle, -slope, spread / math.sqrt(square), spread, len(pairs), math.exp(min(xs)), middle, square)


def curve(run, key='top1'):
    """[(images seen, the value of `key` in percent)] of a run, where it was measured."""
    steps, seen = run.result.get('steps'), run.result.get('images_seen')
    if not steps or not seen:
        return []
    return [(epoch['step'] * seen / steps, epoch[key]) for epoch in run.curve if epoch.get(key) is not None and epoch.get('step')]


def ceiling_of(runs):
    """What the runs' students can hardly pass: their teachers' mean top-1 in percent, or 100 where they have none."""
    known = [run.result['teacher_top1'] for run in runs if run.result.get('teacher_top1') is not None]
    return statistics.mean(known) if known else 100.0


def fit_of_last(runs):
    """The Fit of the ends of the runs' curves, of all seeds together."""
    return fit([point for run in runs for point in curve(run)[-LAST:]], ceiling_of(runs))


def fit_of_ends(runs):
    """The Fit through the last points of runs of different budgets, at least twice the images apart; else None."""
    ends = [curve(run)[-1] for run in runs if curve(run)]
    return fit(ends, ceiling_of(runs)) if ends and max(ends)[0] >= 2 * min(ends)[0] else None
