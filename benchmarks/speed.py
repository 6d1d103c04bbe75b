"""Speed and memory against the published procedure, restated plainly in `published.py`.

    python benchmarks/speed.py OUT.json                # everything at --ch 16 --img_size 128
    python benchmarks/speed.py OUT.json --device cuda --ch 62 --img_size 256
    python benchmarks/speed.py OUT.json --only flat    # also: crf, report

Measures both in turns, so that a machine that slows down slows both, and prints medians and ratios.
That both compute the same losses and gradients is tested: tests/stages/test_label_transfer.py."""
import argparse
import dataclasses
import functools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from common import PROJECT, parser_of, resident_memory

# isort: split
import checkpoint as checkpoints
import dataset
import published
from config import Config, resolve
from inference.crf import DenseCRF
from inference.metrics import METRIC_INFO, segmentation_metrics, summarize
from inference.postprocess import EXPONENTS, segment, worker_pool
from inference.soft_masks import SoftMask, soft_masks
from networks import build_networks, make_ready
from preparation import phantom
from reporting import report, visualize
from runtime import distributed
from runtime.threads import cpu_count
from stages.base import StepResult
from stages.label_transfer import LabelTransferStage
from stages.student import StudentStage
from trainer import Trainer

MODES = {'published': {}, 'ours': {}, 'ours, amp': {'amp': True},
         'ours, compiled': {'compile': True}, 'ours, amp, compiled': {'amp': True, 'compile': True}}
Rows = dict[str, Any]
GENERATIONS = ('first', 'second')
DATA = PROJECT / 'dataset' / 'phantom'


class Bench:
    """One method for each section of the results."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.modes = [name for name in MODES if arguments.compile or 'compiled' not in name]

    def config(self, generation: str = 'first', **changed: Any) -> Config:
        """The published recipe at the size of the command line."""
        return resolve({'ch': self.arguments.ch, 'img_size': self.arguments.img_size,
                        'batch_size': 2, 'augment': False, 'generation': generation,
                        'dataset': 'phantom', 'recipe': 'published', **changed})

    def synchronize(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize()

    def noise(self, count: int, config: Config) -> list[torch.Tensor]:
        """Random images of A and B, count×3×H×W in [-1, 1]."""
        rng = torch.Generator().manual_seed(0)
        return [(torch.rand(count, 3, *config.size, generator=rng) * 2 - 1).to(self.device)
                for _ in 'AB']

    def step(self, mode: str, generation: str, channels_last: bool = False,
             **changed: Any) -> Callable[[], Any]:
        """A function that makes one training step in a mode, with options of Config `changed`."""
        torch.manual_seed(0)
        config = self.config(generation, **MODES[mode], **changed)
        A, B = self.noise(config.batch_size, config)
        if mode == 'published':
            training = published.PublishedTraining(config, self.device)
            return lambda: training.step(A, B)
        stage = LabelTransferStage(config, self.device)
        if channels_last:
            stage.networks.to(memory_format=torch.channels_last)
        return lambda: numbers(stage.step({'A': A, 'B': B}, 0))

    def warm_steps(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The published step and ours with their names, after two calls."""
        for generation in GENERATIONS:
            for mode in ('published', 'ours'):
                step = self.step(mode, generation)
                for _ in range(2):
                    step()
                yield f'{generation}, {mode}', step

    def child(self, *arguments: str, launcher: tuple[str, ...] = (), **environment: str) -> float:
        """What a method of this class (its name comes first) returns in a process of its own."""
        done = subprocess.run(
            [sys.executable, *launcher, __file__, '-', '--ch', str(self.arguments.ch),
             '--img_size', str(self.arguments.img_size), '--child', *arguments],
            env={**os.environ, **environment}, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    def in_turns(self, functions: dict[str, Callable[[], Any]], rounds: int = 15) -> Rows:
        """Seconds of each function, one call each in every round: median, least and most."""
        times = {name: [] for name in functions}
        for _ in range(2 + rounds):  # the first two calls choose algorithms and compile
            for name, function in functions.items():
                self.synchronize()
                start = time.perf_counter()
                function()
                self.synchronize()
                times[name].append(time.perf_counter() - start)
        times = {name: taken[2:] for name, taken in times.items()}
        first = statistics.median(next(iter(times.values())))
        return {name: {'median_s': statistics.median(taken), 'least_s': min(taken),
                       'most_s': max(taken), 'ratio': statistics.median(taken) / first}
                for name, taken in times.items()}

    def training(self) -> Rows:
        """A training step in every mode."""
        return {generation: self.in_turns({mode: self.step(mode, generation)
                                           for mode in self.modes}) for generation in GENERATIONS}

    def student(self) -> Rows:
        """A training step of the U-Net student."""
        config = resolve({'stage': 2, 'img_size': self.arguments.img_size, 'dataset': 'phantom'})
        student = StudentStage(config, self.device)
        A, _ = self.noise(config.batch_size, config)
        B, _ = self.noise(config.normal_batch, config)
        batch = {'A': A, 'B': B, 'mask': A[:, :1].clone()}
        return self.in_turns({'student': lambda: student.step(batch, 0)})

    def memory(self) -> Rows:
        """Peak MB of a process that makes five steps or only imports; on a GPU, what torch took."""
        modes = ['nothing'] + [name for name in self.modes if 'compiled' not in name]
        return {generation: {mode: self.child('peak', mode, generation, '--device',
                                              str(self.device)) for mode in modes}
                for generation in GENERATIONS}

    def peak(self, mode: str, generation: str) -> float:
        """MB after five steps in a mode; of 'nothing', of the imports alone."""
        if mode != 'nothing':
            step = self.step(mode, generation)
            for _ in range(5):
                step()
        is_cuda = self.device.type == 'cuda'
        return torch.cuda.max_memory_allocated() / 1e6 if is_cuda else peak_memory()

    def ceiling(self) -> Rows:
        """Matrix operations of a step over the rate of a large matrix product."""
        size = 2048 if self.device.type == 'cpu' else 8192
        results = {f'{kind} TFLOP/s': self.matrix_rate(dtype, size) for kind, dtype in
                   (('float32', torch.float32), ('bfloat16', torch.bfloat16))}
        for name, step in self.warm_steps():
            teraflops = matrix_operations(step) / 1e12
            results[f'{name}: GFLOP a step'] = teraflops * 1e3
            results[f'{name}: s at that rate, float32'] = teraflops / results['float32 TFLOP/s']
        return results

    def matrix_rate(self, dtype: torch.dtype, size: int) -> float:
        """TFLOP/s of the product of two matrices size×size."""
        left, right = torch.randn(2, size, size, device=self.device).to(dtype)
        taken = self.in_turns({'product': lambda: left @ right}, 9)
        return 2 * size ** 3 / taken['product']['median_s'] / 1e12

    def profile(self) -> Rows:
        """Where a step's time goes: ms of each operator itself, the ten longest."""
        results = {}
        kind = 'self_device' if self.device.type == 'cuda' else 'self_cpu'
        for name, step in self.warm_steps():
            with torch.profiler.profile() as profiler:  # of the CPU and, if any, the GPU
                for _ in range(3):
                    step()
                self.synchronize()
            spent = {event.key: getattr(event, f'{kind}_time_total') / 3e3
                     for event in profiler.key_averages()}
            longest = sorted(spent, key=spent.get, reverse=True)[:10]
            spent['all'] = sum(spent.values())
            results[name] = {operator: round(spent[operator], 1) for operator in (*longest, 'all')}
        return results

    def test(self) -> Rows:
        """Soft masks of trainA (images of 256 px) as files: the whole published generator,
        image by image, against the layers of the mask, read and written beside the network."""
        paths = dataset.list_images(DATA / 'trainA')[:self.arguments.images]
        results = {}
        for generation in GENERATIONS:
            with tempfile.TemporaryDirectory() as folder:
                rows = self.in_turns(self.mask_writers(generation, paths, Path(folder)), 3)
            results[generation] = {name: row | {'images_per_s': len(paths) / row['median_s']}
                                   for name, row in rows.items()}
        return results

    def mask_writers(self, generation: str, paths: list[Path],
                     folder: Path) -> dict[str, Callable[[], None]]:
        """Functions that write the soft masks of all images, as published and as ours."""
        config = dataclasses.replace(self.config(generation), phase='test', batch_size=8)
        torch.manual_seed(0)
        networks = build_networks(config, ['genA2B'])
        plain = published.build(config)['genA2B']
        plain.load_state_dict(networks['genA2B'].state_dict())
        plain.eval().to(self.device)
        network = make_ready(networks, config, self.device).eval()['genA2B']

        def published_way() -> None:
            """Read, run the whole generator, write: one image after the other."""
            for path in paths:
                image = dataset.read_image(path)
                x = dataset.to_tensor(dataset.resize(image, config.size))[None]
                with torch.no_grad():
                    mask = plain(x.to(self.device))['mask'][0, 0].cpu().numpy()
                mask = Image.fromarray(np.rint(mask * 255).astype(np.uint8))
                mask.resize(image.size, Image.Resampling.BILINEAR).save(folder / f'{path.stem}.png')

        def save(soft: SoftMask) -> None:
            Image.fromarray(soft.mask).save(folder / f'{soft.path.stem}.png', compress_level=1)

        return {'published': published_way, 'ours': lambda: list(
            soft_masks(network, paths, config, self.device, finish=save))}

    def data(self) -> Rows:
        """Training images a second of the pipeline alone, and the share of time spent waiting."""
        results = {}
        for generation in GENERATIONS:
            config = self.config(generation, augment=generation == 'second', iteration=400)
            images = dataset.training_images(config.data_folder)
            stage = LabelTransferStage(config, self.device)
            store = dataset.ImageStore(config, stage.sample_size(config))
            batches = functools.partial(dataset.training_batches, images, start=0, store=store,
                                        augment=stage.augment_sample)
            for name, iterations in (('decoded', 100), ('kept in memory', 400)):
                start, count = time.perf_counter(), 0
                for batch in batches(dataclasses.replace(config, iteration=iterations)):
                    count += len(batch['A']) + len(batch['B'])
                results[f'{generation}, {name}: images/s'] = count / (time.perf_counter() - start)
            results[f'{generation}: share of training spent waiting'] = self.waiting(
                stage, batches(dataclasses.replace(config, iteration=60)))
        return results

    def waiting(self, stage: LabelTransferStage, batches: Any, warm_up: int = 10,
                count: int = 50) -> float:
        """Share of the time of `count` iterations, after some to warm up, spent waiting."""
        for iterations in (warm_up, count):
            waited, start = 0.0, time.perf_counter()
            for _ in range(iterations):
                before = time.perf_counter()
                batch = {name: part.to(self.device, non_blocking=True)
                         for name, part in next(batches).items()}
                waited += time.perf_counter() - before
                numbers(stage.step(batch, 0))
        return waited / (time.perf_counter() - start)

    def postprocessing(self) -> Rows:
        """The CRF of the test images, one after the other and on all cores."""
        cases = dataset.find_cases(DATA, 'test')[:40]
        images = [np.asarray(dataset.read_image(case.image)) for case in cases]
        masks = [dataset.read_label(case.label, case.image).astype(np.uint8) * 200 + 20
                 for case in cases]
        rules = ['crf'] * len(cases)
        with worker_pool() as pool:
            return self.in_turns({
                'one by one': lambda: list(map(segment, masks, rules, images)),
                'all cores': lambda: list(pool.map(segment, masks, rules, images))}, 3)

    def crf(self) -> Rows:
        """The dense CRF of one image of 256 px, lattices included, with one t and all that val
        tries: of the built-in test set, and noise, the worst case. Also the memory added, MB."""
        before, rng, results = peak_memory(), np.random.default_rng(0), {}
        phantom_image = np.asarray(dataset.read_image(dataset.list_images(DATA / 'testA')[0]))
        noise = rng.integers(0, 256, phantom_image.shape, dtype=np.uint8)
        for name, image in (('phantom', phantom_image), ('noise', noise)):
            mask = rng.uniform(0, 1, image.shape[:2]).astype(np.float32)
            results[name] = self.in_turns({
                f'{len(t)} t': lambda image=image, mask=mask, t=t: DenseCRF(image).infer(mask, t)
                for t in ((1,), EXPONENTS)}, 7)
        return {**results, 'memory added: MB': peak_memory() - before}

    def report(self) -> Rows:
        """report.html of --images built-in images of 256 px with all eight kinds each: seconds to
        write (drawing them included), to open and to sort it in headless Chromium, MB."""
        with tempfile.TemporaryDirectory() as folder:
            path, start = Path(folder) / 'report.html', time.perf_counter()
            report.write(path, 'speed', {}, report_entries(self.arguments.images), METRIC_INFO,
                         summarize)
            results = {'written: s': time.perf_counter() - start,
                       'size: MB': path.stat().st_size / 1e6, 'peak memory: MB': peak_memory()}
            if shutil.which('chromium') and shutil.which('chromedriver'):
                results['opened: s'], results['sorted: s'] = open_in_browser(path)
        return results

    def processes(self) -> Rows:
        """A step of one process on one thread, and of two that share their gradients, on a
        thread each and with as many images each; and the size of the gradients."""
        parameters = build_networks(self.config()).named_parameters()
        results = {'gradients: MB': sum(4 * parameter.numel() for name, parameter in parameters
                                        if 'recon_decoder' not in name) / 1e6}
        launcher = '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node'
        for count in (1, 2):
            results[f'{count} processes: s a step'] = self.child(
                'shared', launcher=(*launcher, str(count)), OMP_NUM_THREADS='1')
        return results

    def shared(self) -> float:
        """What each of those processes runs: the seconds of a step."""
        distributed.init('cpu')
        taken = self.in_turns({'ours': self.step('ours', 'first')}, 7)
        distributed.shutdown()
        return taken['ours']['median_s']

    def start(self) -> Rows:
        """Seconds of --help, and from an empty folder to the end of the first iteration."""
        results = {}
        with tempfile.TemporaryDirectory() as folder:
            first = ['--iteration', '1', '--data_root', f'{folder}/data', '--result_dir',
                     f'{folder}/results']
            for name, flags in (('--help', ['--help']), ('first iteration', first)):
                start = time.perf_counter()
                subprocess.run([sys.executable, PROJECT / 'main.py', *flags], check=True,
                               capture_output=True)
                results[f'{name}: s'] = time.perf_counter() - start
        return results

    def flat(self) -> Rows:
        """Memory of the process while a folder of 10,000 images is tested by a small network."""
        with tempfile.TemporaryDirectory() as name:
            folder, images = Path(name), Path(name, 'many', 'testA')
            drawn = dataset.list_images(DATA / 'testA')
            images.mkdir(parents=True)
            for number in range(10_000):
                (images / f'{number:05d}.png').symlink_to(drawn[number % len(drawn)].resolve())
            flags = {'dataset': 'many', 'data_root': str(folder), 'result_dir': str(folder / 'out'),
                     'ch': 8, 'n_res': 1, 'n_dis': 4, 'img_size': 32, 'recipe': 'published',
                     'device': str(self.device)}
            config = resolve(flags)
            config.run_folder.mkdir(parents=True)
            checkpoint = config.run_folder / 'many_params_0000001.pt'
            checkpoints.save(checkpoint, build_networks(config), config, 1, None, None, {})
            source = checkpoints.read(checkpoint)
            results = config.result_folder / 'test1'
            samples, start = [], time.perf_counter()
            trainer = Trainer(resolve({**flags, 'phase': 'test'}, source.config))
            with ThreadPoolExecutor(1) as pool:
                testing = pool.submit(trainer.test, source)
                while not testing.done():
                    count = sum(len(os.listdir(masks)) for masks in results.glob('.*/new/mask'))
                    samples.append((count, resident_memory()))
                    time.sleep(1)
                testing.result()
            taken = time.perf_counter() - start
        return {'seconds': taken} | {
            f'{least} images: MB': next((mb for count, mb in samples if count >= least), None)
            for least in (500, 1000, 2500, 5000, 7500, 9900)}


def matrix_operations(step: Callable[[], Any]) -> int:
    """How many operations the matrix products and convolutions of a step take."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def numbers(result: StepResult) -> list[float]:
    """What training reads of every iteration; waits for a GPU."""
    return torch.stack([*result.losses.values(), result.mask_share, result.skipped]).tolist()


def peak_memory() -> float:
    """The largest memory this process has had, MB."""
    if Path('/proc/self/status').is_file():  # getrusage counts the parent process in
        return int(Path('/proc/self/status').read_text('utf-8').split('VmHWM:')[1].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes, on macOS


def report_entries(count: int) -> Iterator[report.Entry]:
    """So many cases; after 60 come the same images under other names."""
    cases = [phantom.draw_skin(np.random.default_rng(number), 256, True) for number in range(60)]
    for number in range(count):
        image, label = cases[number % len(cases)]
        soft = cv2.GaussianBlur(label, (0, 0), 6)
        segmentation = np.roll(soft, number % 23, 1) > 127
        heatmap = visualize.from_heatmap(cv2.GaussianBlur(label, (0, 0), 12))
        images = {'image': image, 'heatmap': heatmap, 'teacher_mask': soft, 'mask': soft,
                  'segmentation': segmentation.astype(np.uint8) * 255, 'label': label,
                  'translation': cv2.medianBlur(image, 15),
                  'overlay': visualize.overlay(image, segmentation, label > 0)}
        yield report.Entry(f'image_{number:05}', images,
                           segmentation_metrics(segmentation, label > 0))


def open_in_browser(path: Path) -> tuple[float, float]:
    """Seconds until the page is complete, and to sort it."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    for flag in ('headless=new', 'no-sandbox', 'disable-gpu', 'window-size=1200,900'):
        options.add_argument(f'--{flag}')
    with webdriver.Chrome(options, webdriver.ChromeService(shutil.which('chromedriver'))) as driver:
        driver.get(path.as_uri())
        complete = driver.execute_script(
            "return performance.getEntriesByType('navigation')[0].domComplete")
        to_sort = driver.execute_script(
            "const start = performance.now(), order = document.getElementById('order');"
            "order.value = 'JA'; order.dispatchEvent(new Event('change'));"
            "document.body.getBoundingClientRect(); return performance.now() - start")
    return complete / 1000, to_sort / 1000


SECTIONS = ('training', 'student', 'memory', 'ceiling', 'profile', 'test', 'data',
            'postprocessing', 'start', 'processes')


def main() -> None:
    """Measure the sections and keep what is measured so far in the output file."""
    parser = parser_of(__doc__)
    parser.add_argument('out', type=Path)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--ch', type=int, default=16)
    parser.add_argument('--img_size', type=int, default=128)
    parser.add_argument('--images', type=int, default=200,
                        help='of the test, at most 200, or of the report')
    parser.add_argument('--compile', action='store_true', help='measure compiled networks too')
    parser.add_argument('--only', nargs='+', choices=(*SECTIONS, 'flat', 'crf', 'report'))
    parser.add_argument('--child', nargs='+', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    bench = Bench(arguments)
    if arguments.child:
        print(getattr(bench, arguments.child[0])(*arguments.child[1:]))
        return
    if not DATA.is_dir():
        phantom.write_phantom(DATA)
    results = {'machine': f'{platform.machine()}, {cpu_count()} cores',
               'torch': torch.__version__, 'threads': torch.get_num_threads(),
               'device': torch.cuda.get_device_name() if bench.device.type == 'cuda' else 'cpu',
               'ch': arguments.ch, 'img_size': arguments.img_size}
    for section in arguments.only or SECTIONS:
        results[section] = getattr(bench, section)()
        print(section, json.dumps(results[section], indent=1), flush=True)
        arguments.out.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    main()
