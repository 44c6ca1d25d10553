"""The benchmarks' tables, from the JSON that bench.py and bench_scale.py write. Standard library only."""

import statistics

TEACHER_FLOPS, STUDENT_FLOPS = 2 * 1_159_402_496, 2 * 555_422_720  # ResNet-34's and ResNet-18's at width 64, of an image
IMAGE_BYTES = 3 * 32 * 32
ASSUMED_TFLOPS = 50  # of a GPU, in scoring: an assumption, not measured


def table(head, cells):
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in [head, ['---', *['---:'] * (len(head) - 1)], *cells]) + '\n'


def rate(values):
    return f'{statistics.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f})'


def machine_words(machine):
    return (f'{machine["name"]}, {machine["threads"]} threads: {machine["matmul_flops"] / 1e9:.0f} GFLOP/s in a {machine["precision"]} '
            f'matrix product, {machine["copy_bytes"] / 1e9:.1f} GB/s in a copy')


def speed_table(content):
    """bench.py's: ours beside the published pipeline, medians and extremes of the repeats, images a second."""
    cells = []
    for name, r in content['rows'].items():
        if 'seconds' in r:
            what = f'{name} of {r["scores"]:,} scores, {r["classes"]:,} classes'
            cells.append([what, '-', f'{r["seconds"]:.2f} s, {r["GiB"]:.2f} GiB', '-', '3 s, 1 GiB', '-', '-'])
            continue
        own = 'memory copy' if name == 'load' else 'matrix product'
        share = f'{100 * r["share"]:.0f} % of {own}' if 'share' in r else '-'
        cells.append([name, rate(r['plain']), rate(r['ours']), f'{r["ratio"]:.2f} x', f'{r["need"]:g} x', share,
                      f'{r["limit"]:.2f} x' if 'limit' in r else '-'])
    facts = f'{machine_words(content["machine"])}. Photos: {content["photos"] or "drawn"}.\n'
    facts += ''.join(f'{line}.\n' for line in content['checks'])
    head = ['row', 'plain, img/s', 'ours, img/s', 'ratio', 'target', "share of the machine's rate", 'upper bound (convolutions only)']
    return table(head, cells) + '\n' + facts


def scale_table(content):
    """bench_scale.py's: a large pool beside a small one."""
    small, large = content['images']
    cells = []
    for step, r in content['rows'].items():
        rates = [f'{r["images_per_s"][str(count)]:,.0f} img/s' for count in (small, large)]
        memory = ', '.join(f'{r["memory_MiB"][str(count)]:,.0f}' for count in (small, large))
        cells.append([step, *rates, f'{r["time_ratio"]:.3f}', f'{memory} MiB', f'{r["memory_ratio"]:.3f}'])
    return table(['step', f'{small:,} images', f'{large:,} images', 'time of an image, ratio', 'peak memory', 'ratio'], cells)


def plan_table(speed):
    """What larger pools take by the measured rates of bench.py on real photos: a plan, and no measurement."""
    decode = statistics.median(speed['rows']['decode']['ours'])  # images a second, of one core
    selection, photo = speed['rows']['selection'], speed['photo_bytes']
    head = ['images', 'files to read', 'cache', 'decoding', f'scoring, one GPU of {ASSUMED_TFLOPS} TFLOP/s (assumed)', 'selecting']
    cells = []
    for count in (1_300_000, 100_000_000, 1_000_000_000):
        share = count / selection['scores']
        cells.append([f'{count:,}', f'{count * photo / 1e12:,.2f} TB', f'{count * IMAGE_BYTES / 1e9:,.0f} GB',
                      f'{count / decode / 3600:,.1f} core hours', f'{count * TEACHER_FLOPS / (ASSUMED_TFLOPS * 1e12) / 3600:,.2f} h',
                      f'{share * selection["seconds"]:,.0f} s, {share * selection["GiB"]:,.1f} GiB'])
    return table(head, cells)
