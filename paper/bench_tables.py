"""The benchmarks' tables, from what bench/speed.py and bench/scale.py write, and that of tests/faults. Standard library only."""

from statistics import median

from paper.tables import markdown

TEACHER_FLOPS, STUDENT_FLOPS = 2 * 1_159_402_496, 2 * 555_422_720  # ResNet-34's and ResNet-18's at width 64, for one image
IMAGE_BYTES = 3 * 32 * 32
ASSUMED_TFLOPS = 50  # of a GPU, in scoring: an assumption, not measured


def machine_words(machine):
    return (f'{machine["name"]}, {machine["threads"]} threads: {machine["matmul_flops"] / 1e9:.0f} GFLOP/s in a {machine["precision"]} '
            f'matrix product, {machine["copy_bytes"] / 1e9:.1f} GB/s in a copy')


def speed_table(bench):
    """Ours beside the published pipeline: medians and extremes of the repeats, images a second."""
    speed, lines = bench['speed'], []
    for name, r in speed['rows'].items():
        if name == 'selection':
            what = f'{name} of {r["scores"]:,} scores, {r["classes"]:,} classes'
            lines.append([what, '-', f'{r["seconds"]:.2f} s, {r["GiB"]:.2f} GiB', '-', '3 s, 1 GiB', '-', '-'])
            continue
        rates = [f'{median(r[key]):,.0f} ({min(r[key]):,.0f}-{max(r[key]):,.0f})' for key in ('plain', 'ours')]
        share = f'{100 * r["share"]:.0f} % of {"memory copy" if name == "load" else "matrix product"}' if 'share' in r else '-'
        lines.append([name, *rates, f'{r["ratio"]:.2f} x', f'{r["need"]:g} x', share, f'{r["limit"]:.2f} x' if 'limit' in r else '-'])
    head = ['row', 'plain, img/s', 'ours, img/s', 'ratio', 'target', "share of the machine's rate", 'upper bound (convolutions only)']
    facts = [f'{machine_words(speed["machine"])}. Photos: {speed["photos"] or "drawn"}', *speed['checks']]
    return '\n'.join([*markdown(head, 1, lines), *(f'{fact}.' for fact in facts), ''])


def ratio_table(*benches):
    """Ours over the published pipeline, a column for each machine."""
    speeds = [bench['speed'] for bench in benches]
    machines = [f'{speed["machine"]["name"]}, {speed["machine"]["precision"]}' for speed in speeds]
    lines = [[name, *(f'{speed["rows"][name]["ratio"]:.2f} x' for speed in speeds)] for name in speeds[0]['rows'] if name != 'selection']
    return '\n'.join(markdown(['stage', *machines], 1, lines))


def scale_table(bench):
    """A large pool beside a small one."""
    counts, lines = bench['scale']['images'], []
    for step, r in bench['scale']['rows'].items():
        rates, memory = ([f'{r[key][str(count)]:,.0f}' for count in counts] for key in ('images_per_s', 'memory_MiB'))
        lines.append([step, *(f'{rate} img/s' for rate in rates), f'{r["time_ratio"]:.3f}', f'{", ".join(memory)} MiB',
                      f'{r["memory_ratio"]:.3f}'])
    head = ['step', *(f'{count:,} images' for count in counts), 'time of an image, ratio', 'peak memory', 'ratio']
    return '\n'.join(markdown(head, 1, lines))


def plan_table(bench):
    """What larger pools take by the measured rates on real photos: arithmetic, not measured."""
    rows, photo, lines = bench['speed']['rows'], bench['speed']['photo_bytes'], []
    decode, selection = median(rows['decode']['ours']), rows['selection']  # images a second, of one core
    for count in (1_300_000, 100_000_000, 1_000_000_000):
        share = count / selection['scores']
        lines.append([f'{count:,}', f'{count * photo / 1e12:,.2f} TB', f'{count * IMAGE_BYTES / 1e9:,.0f} GB',
                      f'{count / decode / 3600:,.1f} core hours', f'{count * TEACHER_FLOPS / (ASSUMED_TFLOPS * 1e12) / 3600:,.2f} h',
                      f'{share * selection["seconds"]:,.0f} s, {share * selection["GiB"]:,.1f} GiB'])
    head = ['images', 'files to read', 'cache', 'decoding', f'scoring, one GPU of {ASSUMED_TFLOPS} TFLOP/s (assumed)', 'selecting']
    return '\n'.join(markdown(head, 1, lines))


def faults_table(rows):
    """What was tried against the project, from the log of tests/faults. rows: dicts of kind, of, tries, survived, lost."""
    keys = ('tries', 'survived', 'lost')
    lines = [[row['kind'], row['of'], *(f'{row[key]:,}' for key in keys)] for row in rows]
    lines.append(['all', '', *(f'{sum(row[key] for row in rows):,}' for key in keys)])
    return '\n'.join(markdown(['fault', 'in', *keys], 2, lines))
