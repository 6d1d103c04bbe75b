"""What has to be known of the program on a GPU: whether it is right there, and how fast.

    python benchmarks/gpu.py OUT                    # at most 8 minutes; needs nothing else
    python benchmarks/gpu.py OUT --data_root DATA   # then accuracy on LGG, ISIC and BUSI in DATA

OUT/figures.json gets each figure as soon as it is known; the same command goes on after those that
are there, and repeats what failed. On a machine without a GPU it runs a miniature of itself, whose
times say nothing. Exit code: 1 where a check failed or a figure could not be measured."""
import argparse
import functools
import gc
import json
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch
from torch import Tensor

from common import parser_of, resident_memory

# isort: split
import accuracy
import checkpoint as checkpoints
import dataset
import workflow
from config import Config
from inference import metrics
from inference.soft_masks import autocast
from predict import Predictor, predict_volume
from preparation import nifti, phantom
from runtime.files import atomic_write
from speed import Bench, matrix_operations, numbers, peak_memory
from stages.label_transfer import LabelTransferStage
from trainer import STAGES
from utils import pick_device

GENERATIONS = ('first', 'second')
TIME_TO_SAVE = 20  # s, of a training that is stopped when time is up


# mode -> mode of speed.py, precision of float32, options of Bench.step
MODES = {'published, fp32': ('published', 'ieee', {}), 'published, tf32': ('published', 'tf32', {}),
         'fp32': ('ours', 'ieee', {}), 'tf32': ('ours', 'tf32', {}),
         'tf32, channels last': ('ours', 'tf32', {'channels_last': True}),
         'bf16': ('ours, amp', 'tf32', {}),
         'tf32, compiled': ('ours, compiled', 'tf32', {}),
         'bf16, compiled': ('ours, amp, compiled', 'tf32', {})}


class Size(NamedTuple):
    """How large everything is."""

    ch: dict[str, int]  # by generation
    networks: dict[str, Any]  # further options of label transfer
    batches: tuple[int, ...]
    timed: tuple[str, ...]  # generations
    modes: tuple[str, ...]  # of timed steps
    rounds: int  # of timing
    matrix: int  # px, side
    iterations: int  # over which memory is watched
    images: int  # that are predicted
    slices: int
    weights: tuple[str, str]  # in model/, that predict an image and a volume
    trainings: dict[str, dict[str, Any]]  # that are resumed: options


SMALL = {'ch': 4, 'img_size': 32}
FULL = Size({'first': 62, 'second': 54}, {'img_size': 256}, (2, 8), GENERATIONS, tuple(MODES), 7,
            8192, 500, 40, 155, ('ISIC', 'LGG'),
            {'stage 0': {'stage': 0}, 'stage 2': {'stage': 2},
             'stage 1': {'stage': 1, 'recipe': 'published', 'ch': 62, 'img_size': 256}})
MINIATURE = Size({'first': 4, 'second': 4},
                 {'img_size': 32, 'n_res': 1, 'n_dis': 4, 'encoder': 'none'}, (1,), ('first',),
                 ('tf32, channels last', 'bf16, compiled'), 1, 64, 4, 4, 2, ('phantom', 'phantom'),
                 {'stage 0': {'stage': 0, **SMALL}})

RIVAL, AIM = 'published, tf32', 0.25  # of its time for a step with bf16; torch's default is TF32
# largest difference allowed: outputs and losses relative to the largest value, gradients of a
# network in relative norm
EXACT = {'outputs': 1e-3, 'losses': 1e-3, 'gradients': 1e-2}
ROUGH = {'outputs': 0.1, 'losses': 0.1, 'gradients': 0.5}  # bfloat16 has 8 bits
RESUMED = 2e-2  # of losses: backward passes of a GPU add up in no fixed order
SOFT_MASK = 2e-2  # convolutions in TF32 have 11 bits
ACCURACY_SETS = ('LGG', 'ISIC', 'BUSI')
ACCURACY_ROWS = ('ours, stage 0', accuracy.FINAL, 'ours, stage 1, best post-processing',
                 'ours with stage 1, best post-processing')
ACCURACY_SIZES = ['--size=--ch 62 --img_size 256', '--student=--img_size 256', '--seeds', '0']
Figure = dict[str, Any]
Values = dict[str, dict[str, Tensor]]  # outputs, losses and gradients by name


class TimeIsUp(BaseException):
    """Raised by the alarm; no Exception, so that nobody takes it for a failure."""


class Record:
    """The figures known so far, and their file."""

    def __init__(self, folder: Path, machine: dict[str, str]) -> None:
        self.path, self.machine, self.figures = folder / 'figures.json', machine, {}
        if self.path.is_file():
            content = json.loads(self.path.read_text('utf-8'))
            if content['machine'] != machine:
                sys.exit(f'{self.path}: holds figures of another machine or torch '
                         f'({content["machine"]}); give another folder')
            self.figures = content['figures']

    @property
    def failed(self) -> list[str]:
        """Names of checks that failed, and of figures that could not be measured."""
        return [name for name, figure in self.figures.items()
                if 'error' in figure or not figure.get('ok', True)]

    def add(self, name: str, measure: Callable[[], Figure]) -> None:
        """Measure a figure unless it is known, and write it."""
        if name in self.figures and name not in self.failed:
            return
        start = time.perf_counter()
        try:
            figure = measure()
        except Exception as error:
            traceback.print_exc()
            figure = {'error': ' '.join(f'{type(error).__name__} {error}'.split())[:500]}
        self.figures[name] = {**figure, 'took_s': round(time.perf_counter() - start, 1)}
        print(f'{name}: {text(figure)}', flush=True)
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(
                {'machine': self.machine, 'figures': self.figures}, indent=1) + '\n')


def text(figure: Figure) -> str:
    """A figure in one line."""
    return ', '.join(f'{name} {value:.3g}' if isinstance(value, float) else f'{name} {value}'
                     for name, value in figure.items())


# --------------------------------------------------------------------------------- correctness

def set_precision(kind: str) -> None:
    """How a GPU multiplies float32: `ieee`, or `tf32`, with 11 bits."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.fp32_precision = kind
        torch.backends.cudnn.conv.fp32_precision = kind
        torch.backends.cudnn.rnn.fp32_precision = kind  # torch looks at both at once


def step_values(config: Config, device: torch.device, channels_last: bool = False) -> Values:
    """What one step of label transfer computes of noise, on the CPU. Networks and noise are equal
    on all devices. Gradients: Adam's first moments, of which they are a fixed multiple."""
    torch.manual_seed(0)
    stage = LabelTransferStage(config, device)
    if channels_last:
        stage.networks.to(memory_format=torch.channels_last)
    real = {domain: (torch.rand(config.batch_size, config.img_ch, *config.size) * 2 - 1).to(device)
            for domain in 'AB'}
    with torch.no_grad(), autocast(config, device):
        output = stage.networks['genA2B'](real['A'])
    result = stage.step(real, 0)
    gradients = {}
    for name, network in stage.networks.items():
        moments = [optimizer.state[parameter]['exp_avg'].flatten()
                   for parameter in network.parameters()
                   for optimizer in stage.optimizers.values() if parameter in optimizer.state]
        gradients[name] = torch.cat(moments)
    outputs = {name: value for name, value in output._asdict().items() if value is not None}
    return {kind: {name: value.detach().float().cpu() for name, value in values.items()}
            for kind, values in (('outputs', outputs), ('losses', result.losses),
                                 ('gradients', gradients))}


def compare(values: Values, reference: Values, allowed: dict[str, float]) -> Figure:
    """The largest differences of each kind, and whether all are `allowed`."""
    largest = max(abs(float(loss)) for loss in reference['losses'].values())
    found = {'outputs': max(float((value - other).abs().max() / other.abs().max())
                            for value, other in pairs(values, reference, 'outputs')),
             'losses': max(abs(float(value - other)) / max(abs(float(other)), 1e-3 * largest)
                           for value, other in pairs(values, reference, 'losses')),
             'gradients': max(float((value - other).norm() / other.norm())
                              for value, other in pairs(values, reference, 'gradients'))}
    return {**found, 'allowed': allowed,
            'ok': all(found[kind] <= allowed[kind] for kind in found)}  # False for NaN


def pairs(values: Values, reference: Values, kind: str) -> Iterator[tuple[Tensor, Tensor]]:
    if values[kind].keys() != reference[kind].keys():
        raise ValueError(f'{kind}: {values[kind].keys()} instead of {reference[kind].keys()}')
    return ((value, reference[kind][name]) for name, value in values[kind].items())


def losses_of(folder: Path) -> np.ndarray:
    """The rows of losses.csv."""
    return np.genfromtxt(folder / 'losses.csv', delimiter=',', skip_header=1)


class GPUBench(Bench):
    """Bench at a Size, and a method for each further figure."""

    def __init__(self, size: Size, device: torch.device, output: Path) -> None:
        super().__init__(argparse.Namespace(
            device=str(device), ch=size.ch['first'], img_size=size.networks['img_size'],
            compile=False, images=size.images))
        self.size, self.output, self.data = size, output, output / 'data'
        self.references: dict[str, Values] = {}  # by generation
        self.counted: dict[tuple, int] = {}
        self.common = {'dataset': 'phantom', 'data_root': str(self.data), 'device': str(device)}

    def config(self, generation: str = 'first', **changed: Any) -> Config:
        return super().config(generation, **{'ch': self.size.ch[generation], **self.size.networks,
                                             **self.common, **changed})

    def draw_data(self) -> None:
        """The built-in data, unless it is there."""
        folder = self.data / 'phantom'
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            phantom.write_phantom(folder, size=self.size.networks['img_size'], progress=False)

    # ---------------------------------------------------------------------------- correctness

    def reference(self, generation: str) -> Values:
        """What a step computes in float32 on the device."""
        if generation not in self.references:
            config = self.config(generation, batch_size=1)
            self.references[generation] = step_values(config, self.device)
        return self.references[generation]

    def agreement(self, generation: str) -> Figure:
        """The device against the CPU."""
        set_precision('ieee')
        of_cpu = step_values(self.config(generation, batch_size=1), torch.device('cpu'))
        return compare(self.reference(generation), of_cpu, EXACT)

    def agreement_of_mode(self, generation: str, allowed: dict[str, float],
                          channels_last: bool = False, **options: bool) -> Figure:
        """A mode against float32 on the same device."""
        set_precision('ieee')
        values = step_values(self.config(generation, batch_size=1, **options), self.device,
                             channels_last)
        return compare(values, self.reference(generation), allowed)

    def resume(self, options: dict[str, Any]) -> Figure:
        """Losses of iterations 3 and 4 of a training resumed after 2, against one that was not
        interrupted."""
        set_precision('ieee')
        logs = []
        with tempfile.TemporaryDirectory(dir=self.output) as name:
            flags = {**self.common, 'phase': 'train', 'iteration': 4, 'save_freq': 2,
                     'print_freq': 4, **options}
            if options['stage'] == 2:  # needs a teacher
                workflow.run({**flags, 'stage': 0, 'ch': 16, 'img_size': 64,
                              'result_dir': f'{name}/whole'})
            workflow.run({**flags, 'result_dir': f'{name}/whole'})
            shutil.copytree(f'{name}/whole', f'{name}/resumed')
            for part in ('whole', 'resumed'):
                of_stage = Path(name, part, 'phantom')
                if part == 'resumed':
                    run = of_stage / f'model{options["stage"]}'
                    (run / checkpoints.file_name('phantom', 4)).unlink()
                    workflow.run({**flags, 'resume': True, 'result_dir': f'{name}/{part}'})
                logs.append(losses_of(of_stage / f'log{options["stage"]}'))
        whole, resumed = logs
        if whole.shape != resumed.shape:
            return {'rows': len(resumed), 'ok': False}
        largest = np.abs(whole - resumed).max() / np.abs(whole[:, 1:]).max()
        return {'losses': float(largest), 'allowed': RESUMED, 'ok': bool(largest <= RESUMED)}

    def predict(self) -> Figure:
        """Soft masks and segmentations of an image and of a volume, by weights in model/, against
        those of the CPU."""
        set_precision('tf32')  # as users have it
        side = self.size.networks['img_size']
        image, _ = phantom.draw_skin(np.random.default_rng(0), side, True)
        slices = [phantom.draw_skin(np.random.default_rng(number), side, True)[0].mean(2)
                  for number in range(self.size.slices)]
        path = self.output / 'volume.nii.gz'
        nibabel.save(nibabel.Nifti1Image(np.stack(slices, 2).astype(np.int16), np.eye(4)), path)
        found = []
        for device in (str(self.device), 'cpu'):
            of_image, of_volume = (Predictor(
                checkpoints.best_of_run(checkpoints.MODEL_FOLDER, name), device)
                for name in self.size.weights)
            prediction, = of_image.predict_each([image])
            of_all = prediction, predict_volume(of_volume, nifti.read(path))
            found.append([part for one in of_all for part in (one.segmentation, one.probability)])
        figure = {}
        for name, places in (('image', (0, 1)), ('volume', (2, 3))):
            (mask, soft), (mask_of_cpu, soft_of_cpu) = ([part[place] for place in places]
                                                        for part in found)
            figure[f'{name}: soft mask'] = float(np.abs(soft - soft_of_cpu).max())
            figure[f'{name}: JA'] = metrics.segmentation_metrics(mask > 0, mask_of_cpu > 0)['JA']
        agree = all(value <= SOFT_MASK if 'soft' in name else value > 98
                    for name, value in figure.items())
        return {**figure, 'allowed': f'{SOFT_MASK} and 98 %', 'ok': agree}

    # ---------------------------------------------------------------------------------- speed

    def rates(self) -> Figure:
        """TFLOP/s of a large matrix product by precision."""
        figure = {}
        for name, precision, dtype in (('fp32', 'ieee', torch.float32),
                                       ('tf32', 'tf32', torch.float32),
                                       ('bf16', 'tf32', torch.bfloat16)):
            set_precision(precision)
            figure[name] = self.matrix_rate(dtype, self.size.matrix)
        return figure

    def operations(self, *mode: Any) -> int:
        """How many a step takes; arguments as of `step`, but not compiled."""
        if mode not in self.counted:
            of_speed, generation, batch = mode
            self.counted[mode] = matrix_operations(
                self.step(of_speed, generation, batch_size=batch))
        return self.counted[mode]

    def timed_step(self, generation: str, batch: int, mode: str, rates: Figure) -> Figure:
        """Time and peak memory of a step, and its share of the rate of matrix products."""
        of_speed, precision, options = MODES[mode]
        set_precision(precision)
        operations = self.operations('published' if 'published' in mode else 'ours', generation,
                                     batch)
        step = self.step(of_speed, generation, batch_size=batch, **options)
        step()
        with peak_of(self.device) as peak:
            step()
        taken = self.in_turns({mode: step}, self.size.rounds)[mode]
        rate = operations / taken['median_s'] / 1e12
        kind = next(kind for kind in ('fp32', 'tf32', 'bf16') if kind in mode)
        return {name: taken[name] for name in ('median_s', 'least_s', 'most_s')} | {
            'TFLOP/s': rate, 'share of matrix rate': rate / rates[kind], 'peak_GB': peak[0] / 1e3}

    def waiting_for_data(self) -> Figure:
        """The share of the time of a training with bf16 that goes into waiting for images."""
        set_precision('tf32')
        long = self.size.iterations >= 60
        config = self.config(amp=True, iteration=60 if long else 4)
        stage = LabelTransferStage(config, self.device)
        batches = dataset.training_batches(
            dataset.training_images(config.data_folder), config, 0,
            dataset.ImageStore(config, stage.sample_size(config)), augment=stage.augment_sample)
        return {'share': self.waiting(stage, batches, *((10, 50) if long else (2, 2))),
                'aim': 0.02}

    def memory_over_time(self) -> Figure:
        """MB in use early and at the end of a training."""
        set_precision('tf32')
        step, used = self.step('ours, amp', 'first'), {}
        for iteration in range(1, self.size.iterations + 1):
            step()
            if iteration in (self.size.iterations // 10 or 1, self.size.iterations):
                used[f'after {iteration}: MB'] = (
                    torch.cuda.memory_allocated() / 1e6 if self.device.type == 'cuda'
                    else resident_memory())
        return used

    def synchronizations(self, stage: int) -> Figure:
        """How often a step of a stage waits for the GPU, and in which lines; the Trainer's own
        reading of the losses, once an iteration, comes on top."""
        config = self.config(recipe='ours', stage=stage, augment=stage != 1)
        stage_in_training = STAGES[config.method](config, self.device)
        A, B = self.noise(config.batch_size, config)
        batch = {'A': A, 'B': B, 'mask': A[:, :1].clone()}
        for _ in range(2):
            numbers(stage_in_training.step(batch, 0))
        with waits_counted(self.device) as lines:
            stage_in_training.step(batch, 0)
        return {'waits': len(lines), 'lines': sorted(set(lines))}

    def prediction(self) -> Figure:
        """Megapixels a second: soft masks as files at the published size, and segmentations by the
        weights of model/, refinement on the CPU included."""
        set_precision('tf32')
        paths = dataset.list_images(self.data / 'phantom' / 'testA')[:self.size.images]
        megapixels = len(paths) * self.size.networks['img_size'] ** 2 / 1e6
        figure = {}
        with tempfile.TemporaryDirectory() as folder:
            for generation in GENERATIONS:
                writers = self.mask_writers(generation, paths, Path(folder))
                for name, taken in self.in_turns(writers, min(3, self.size.rounds)).items():
                    figure[f'{generation}, {name}'] = megapixels / taken['median_s']
        predictor = Predictor(checkpoints.best_of_run(
            checkpoints.MODEL_FOLDER, self.size.weights[0]), str(self.device))
        images = [np.asarray(dataset.read_image(path)) for path in paths]
        taken = self.in_turns({'': lambda: list(predictor.predict_each(images))}, 1)
        return {**figure, 'segmentations': megapixels / taken['']['median_s']}


@contextmanager
def peak_of(device: torch.device) -> Iterator[list[float]]:
    """The most memory, MB, that is used within; on a CPU by the process so far."""
    peak = []
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    yield peak
    peak.append(torch.cuda.max_memory_allocated() / 1e6 if device.type == 'cuda'
                else peak_memory())


@contextmanager
def waits_counted(device: torch.device) -> Iterator[list[str]]:
    """The lines (file:number) that wait for the GPU within; none on a CPU."""
    lines = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        if device.type == 'cuda':
            torch.cuda.set_sync_debug_mode('warn')
        try:
            yield lines
        finally:
            if device.type == 'cuda':
                torch.cuda.set_sync_debug_mode('default')
    lines += [f'{Path(one.filename).name}:{one.lineno}' for one in caught
              if 'synchronizing' in str(one.message)]


# --------------------------------------------------------------------------------- all of it

def figures(bench: GPUBench, record: Record) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Name and measurement of each figure, the most important first; what is compiled, which takes
    a minute or more each, last."""
    for generation in GENERATIONS:
        check = functools.partial(bench.agreement_of_mode, generation)
        yield f'{generation} generation against the CPU', functools.partial(
            bench.agreement, generation)
        yield f'{generation} generation, bf16 against fp32', functools.partial(
            check, ROUGH, amp=True)
        yield f'{generation} generation, channels last against contiguous', functools.partial(
            check, EXACT, channels_last=True)
    for name, options in bench.size.trainings.items():
        yield f'resume, {name}', functools.partial(bench.resume, options)
    yield 'predict against the CPU', bench.predict
    yield 'matrix products, TFLOP/s', bench.rates
    for compiled in (False, True):
        if compiled:
            yield 'waiting for data', bench.waiting_for_data
            for stage in range(3):
                yield f'waiting for the GPU, stage {stage}', functools.partial(
                    bench.synchronizations, stage)
            yield 'predict, megapixels/s', bench.prediction
            yield f'memory over {bench.size.iterations} iterations', bench.memory_over_time
            for generation in GENERATIONS:
                yield f'{generation} generation, compiled against not', functools.partial(
                    bench.agreement_of_mode, generation, EXACT, compile=True)
        for generation in bench.size.timed:
            for batch in bench.size.batches:
                for mode in (one for one in bench.size.modes if ('compiled' in one) == compiled):
                    yield step_name(generation, batch, mode), functools.partial(
                        bench.timed_step, generation, batch, mode,
                        record.figures['matrix products, TFLOP/s'])


def step_name(generation: str, batch: int, mode: str) -> str:
    return f'step, {generation} generation, batch {batch}, {mode}'


def accuracy_figures(output: Path, data_root: Path,
                     device: str) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Test JA of the default recipe at full size, one seed, by `accuracy.py`: what needs no stage 1
    of all sets first. A training that time stops goes on the next time."""
    options = accuracy.parse_options([str(output / 'accuracy'), '--data_root', str(data_root),
                                      '--device', device, *ACCURACY_SIZES])

    def mean(name: str, row: str) -> Figure:
        (options.output / 'rows').mkdir(parents=True, exist_ok=True)
        stored = accuracy.stored_row(options, name, 0, row)
        values = [case['JA'] for case in stored['cases'].values()]
        return {'JA': float(np.mean(values)), 'images': len(values), 'chosen': stored['chosen']}

    for rows in (ACCURACY_ROWS[:2], ACCURACY_ROWS[2:]):
        for name in ACCURACY_SETS:
            if (data_root / name).is_dir():
                for row in rows:
                    yield f'accuracy, {name}, {row}', functools.partial(mean, name, row)


def summary(bench: GPUBench, record: Record) -> str:
    """Times of a step as a table, relative to the published procedure on the same card."""
    lines = ['| step | s | ratio | share of matrix rate | GB |', '|---|---|---|---|---|']
    for generation in bench.size.timed:
        for batch in bench.size.batches:
            rival = record.figures.get(step_name(generation, batch, RIVAL), {}).get('median_s')
            for mode in MODES:
                one = record.figures.get(step_name(generation, batch, mode), {})
                if 'median_s' in one:
                    ratio = f'{one["median_s"] / rival:.2f}' if rival else ''
                    lines.append(f'| {generation}, batch {batch}, {mode} | {one["median_s"]:.4f} | '
                                 f'{ratio} | {100 * one["share of matrix rate"]:.0f} % | '
                                 f'{one["peak_GB"]:.1f} |')
    return '\n'.join([*lines, f'(aim with bf16: ratio at most {AIM} of {RIVAL})'])


def run(bench: GPUBench, record: Record, data_root: Path | None) -> None:
    """Measure what is not known yet."""
    bench.draw_data()
    for name, measure in figures(bench, record):
        record.add(name, measure)
        if bench.device.type == 'cuda':
            gc.collect()
            torch.cuda.empty_cache()
    if data_root:
        for name, measure in accuracy_figures(bench.output, data_root, str(bench.device)):
            record.add(name, measure)


def main(arguments: list[str] | None = None) -> int:
    """See the head of this file."""
    parser = parser_of(__doc__)
    parser.add_argument('out', type=Path)
    parser.add_argument('--data_root', type=Path)
    parser.add_argument('--minutes', type=float, default=8, help='after which it stops')
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    device = pick_device('cuda' if torch.cuda.is_available() else 'cpu')
    is_gpu = device.type == 'cuda'
    if not is_gpu:
        print('no GPU here: a miniature on the CPU, whose times say nothing')
        torch.compiler.set_stance('force_eager')  # compiling would take minutes
    record = Record(options.out, {
        'device': torch.cuda.get_device_name() if is_gpu else 'cpu', 'torch': torch.__version__})
    bench = GPUBench(FULL if is_gpu else MINIATURE, device, options.out)

    def ring(number: int, frame: Any) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, 60 * options.minutes - TIME_TO_SAVE))
    try:
        run(bench, record, options.data_root)
        print('all figures are there')
    except TimeIsUp:
        print('time is up; the same command goes on')
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        torch.compiler.set_stance('default')
        set_precision('none')
    print(summary(bench, record), f'\n{len(record.figures)} figures are in {record.path}')
    for name in record.failed:
        print(f'FAILED: {name}: {text(record.figures[name])}')
    return 1 if record.failed else 0


if __name__ == '__main__':
    sys.exit(main())
