"""Times ONNX files on this machine. It needs Python, numpy and onnxruntime, and nothing else.

python measure.py                      times what pieces.json lists, and writes table.json
python measure.py --threads=1          the same with one thread
python measure.py FILE.onnx ...        prints the milliseconds of any network

Stop other programs first. Copy table.json back, and search with cost.table=table.json.
"""

import argparse
import json
import pathlib
import platform
import time
import zlib

import numpy as np
import onnxruntime

WARMUP_CALLS = 10  # are not evaluated
MIN_CALLS = 50


def main() -> None:
    """Reads the command line and times the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('files', nargs='*', help='networks to time instead of the pieces')
    parser.add_argument('--threads', type=int, default=0, help='0: as onnxruntime chooses')
    parser.add_argument('--provider', default='CPUExecutionProvider', help='of onnxruntime')
    parser.add_argument('--seconds', type=float, default=0.2, help='for each file, at least')
    parser.add_argument('--images', type=int, help='at once; for the pieces, pieces.json says it')
    parser.add_argument('--device', help='name of this machine in the table')
    parser.add_argument('--out', default='table.json', help='the table')
    flags = parser.parse_args()
    if flags.provider not in onnxruntime.get_available_providers():
        parser.error(
            f'--provider={flags.provider}: this onnxruntime has '
            f'{", ".join(onnxruntime.get_available_providers())}'
        )
    if flags.files:
        for file in flags.files:
            print(f'{file}: {milliseconds(file, flags.images or 1, flags):.4f} ms')
        return
    folder = pathlib.Path(__file__).parent
    listed = json.loads((folder / 'pieces.json').read_text())
    if flags.images not in (None, listed['images']):
        parser.error(f'--images={flags.images}: pieces.json is for {listed["images"]}')
    taken = {}  # by file: several pieces may be the same one
    for number, file in enumerate(dict.fromkeys(listed['pieces'].values()), start=1):
        taken[file] = milliseconds(folder / file, listed['images'], flags)
        print(f'{number}: {file}: {taken[file]:.4f} ms', flush=True)
    table = {
        'space': listed['space'],
        'device': flags.device or description(flags),
        'images': listed['images'],
        'dtype': listed['dtype'],
        'milliseconds': {key: taken[file] for key, file in listed['pieces'].items()},
    }
    table['checksum'] = zlib.crc32(json.dumps(table, sort_keys=True).encode())
    pathlib.Path(flags.out).write_text(json.dumps(table, indent=2) + '\n')
    print(f'{len(table["milliseconds"])} latencies are in {flags.out}')


def milliseconds(file: str | pathlib.Path, images: int, flags: argparse.Namespace) -> float:
    """Returns the median time of a call, in milliseconds."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = flags.threads
    session = onnxruntime.InferenceSession(str(file), options, providers=[flags.provider])
    (given,) = session.get_inputs()
    random = np.random.default_rng(0)
    shape = [images, *given.shape[1:]]
    if given.type == 'tensor(uint8)':
        x = random.integers(0, 256, shape, dtype=np.uint8)
    else:
        x = random.normal(size=shape).astype(np.float32)
    seconds = []
    while len(seconds) < WARMUP_CALLS + MIN_CALLS or sum(seconds) < flags.seconds:
        start = time.perf_counter()
        session.run(None, {given.name: x})
        seconds.append(time.perf_counter() - start)
    low, median, high = np.quantile(seconds[WARMUP_CALLS:], (0.25, 0.5, 0.75)) * 1000
    if high > 2 * low:
        print(
            f'{file}: half of the calls took {low:.4f} to {high:.4f} ms, which is too wide a '
            'range. Stop other programs, and start again.'
        )
    return round(float(median), 6)


def description(flags: argparse.Namespace) -> str:
    """Names the processor, the provider, the threads and the version of onnxruntime."""
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path('/proc/cpuinfo')
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(': ')[1] for line in lines if line.startswith('model name')), name)
    threads = flags.threads or 'all'
    return f'{name}, {flags.provider}, {threads} threads, onnxruntime {onnxruntime.__version__}'


if __name__ == '__main__':
    main()
