"""Speed and memory against the published procedure, restated plainly in `published.py`.

    python benchmarks/speed.py OUT.json                # everything at --ch 16 --img_size 128
    python benchmarks/speed.py OUT.json --device cuda --ch 62 --img_size 256
    python benchmarks/speed.py OUT.json --only flat    # memory over a folder of 10,000 images

First checks that both compute the same losses and gradients. Then measures them in turns, so that
a machine that slows down slows both, and prints medians and ratios.
"""
import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import checkpoint as checkpoints  # noqa: E402
import dataset  # noqa: E402
import published  # noqa: E402
from config import Config, resolve  # noqa: E402
from inference.postprocess import segment, worker_pool  # noqa: E402
from inference.soft_masks import SoftMask, soft_masks  # noqa: E402
from networks import build_networks, make_ready  # noqa: E402
from preparation import phantom  # noqa: E402
from runtime import distributed  # noqa: E402
from runtime.threads import cpu_count, prefetch  # noqa: E402
from stages.base import StepResult  # noqa: E402
from stages.label_transfer import LabelTransferStage  # noqa: E402
from stages.student import StudentStage  # noqa: E402
from trainer import Trainer  # noqa: E402
from utils import staging_folder  # noqa: E402

MODES = {'published': {}, 'ours': {}, 'ours, amp': {'amp': True},
         'ours, compiled': {'compile': True}, 'ours, amp, compiled': {'amp': True, 'compile': True}}

Rows = dict[str, Any]
GENERATIONS = ('first', 'second')


class Bench:
    """One method for each section of the results."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.data_root = arguments.data_root
        self.modes = [name for name in MODES if arguments.compile or 'compiled' not in name]

    def config(self, generation: str = 'first', **changed: Any) -> Config:
        """The published recipe at the size of the command line."""
        return resolve({'ch': self.arguments.ch, 'img_size': self.arguments.img_size,
                        'batch_size': 2, 'augment': False, 'generation': generation,
                        'dataset': 'phantom', 'recipe': 'published',
                        'data_root': str(self.data_root), **changed})

    def synchronize(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize()

    def noise(self, count: int, config: Config, seed: int = 0) -> list[torch.Tensor]:
        """Random images of A and B, count×3×H×W in [-1, 1]."""
        rng = torch.Generator().manual_seed(seed)
        return [(torch.rand(count, 3, *config.size, generator=rng) * 2 - 1).to(self.device)
                for _ in 'AB']

    def step(self, mode: str, generation: str) -> Callable[[], Any]:
        """A function that makes one training step in a mode."""
        torch.manual_seed(0)
        config = self.config(generation, **MODES[mode])
        A, B = self.noise(config.batch_size, config)
        if mode == 'published':
            training = published.PublishedTraining(config, self.device)
            return lambda: training.step(A, B)
        stage = LabelTransferStage(config, self.device)
        return lambda: numbers(stage.step({'A': A, 'B': B}, 0))

    def in_turns(self, functions: dict[str, Callable[[], Any]], rounds: int) -> Rows:
        """Seconds of each function, one call each in every round: median, least and most."""
        for function in functions.values():
            for _ in range(2):  # the first calls choose algorithms and compile
                function()
        times = {name: [] for name in functions}
        for _ in range(rounds):
            for name, function in functions.items():
                self.synchronize()
                start = time.perf_counter()
                function()
                self.synchronize()
                times[name].append(time.perf_counter() - start)
        first = statistics.median(next(iter(times.values())))
        return {name: {'median_s': statistics.median(taken), 'least_s': min(taken),
                       'most_s': max(taken), 'ratio': statistics.median(taken) / first}
                for name, taken in times.items()}

    # -------------------------------------------------------------------------------- sections

    def check(self) -> Rows:
        """Losses and gradients of both on one batch, networks in evaluation mode (spectral norm's
        power iteration stands still); the largest relative differences.

        A rounding can change which pixel is the largest of a map, and with it a network's
        gradient by 1e-3, in either computation. So of four batches each network's least
        difference is taken.
        """
        results = {}
        for generation in GENERATIONS:
            tried = [self.differences(generation, seed) for seed in range(4)]
            results[generation] = {
                'losses': max(losses for losses, _ in tried),
                'gradients': max(map(min, zip(*(gradients for _, gradients in tried),
                                              strict=True)))}
            if max(results[generation].values()) > 1e-4:
                raise SystemExit(f'not the same computation: {generation} {tried}')
        return results

    def differences(self, generation: str, seed: int) -> tuple[float, list[float]]:
        """Largest relative difference of a loss, and of the gradient of each network."""
        config = self.config(generation)
        torch.manual_seed(seed)
        stage = LabelTransferStage(config, self.device)
        stage.networks.eval()
        stage.networks.train = lambda mode=True: None
        plain = published.build(config).to(self.device).eval()
        plain.load_state_dict(stage.networks.state_dict())
        A, B = self.noise(2, config, seed)
        ours = {}

        def keep_gradients() -> None:
            ours.update({name: parameter.grad.clone() for name, parameter in
                         stage.networks.named_parameters() if parameter.grad is not None})

        for optimizer in stage.optimizers.values():
            optimizer.step = keep_gradients
        values = stage.step({'A': A, 'B': B}, 0).losses
        terms = published.generator_losses(plain, A, B, config)
        losses = {'gen': sum(terms.values()),
                  'dis': published.discriminator_loss(plain, A, B, config)}
        expected = {}
        for kind, loss in losses.items():
            parameters = {name: parameter for name, parameter in plain.named_parameters()
                          if name.startswith(kind)}
            expected |= dict(zip(parameters, torch.autograd.grad(
                loss, list(parameters.values()), allow_unused=True), strict=True))
        of_networks = []
        for network in plain:
            names = [name for name in ours if name.startswith(f'{network}.')]
            difference, size = (torch.cat([part.flatten() for part in parts]).norm().item()
                                for parts in ([ours[name] - expected[name] for name in names],
                                              [expected[name] for name in names]))
            of_networks.append(difference / size)
        terms['discriminator'] = losses['dis']
        return max(abs(values[name].item() / term.item() - 1)
                   for name, term in terms.items()), of_networks

    def training(self) -> Rows:
        """A training step in every mode."""
        return {generation: self.in_turns({mode: self.step(mode, generation)
                                           for mode in self.modes}, self.arguments.rounds)
                for generation in GENERATIONS}

    def student(self) -> Rows:
        """A training step of the U-Net student."""
        config = resolve({'stage': 2, 'img_size': self.arguments.img_size, 'dataset': 'phantom'})
        student = StudentStage(config, self.device)
        A, _ = self.noise(config.batch_size, config)
        B, _ = self.noise(config.normal_batch, config)
        batch = {'A': A, 'B': B, 'mask': A[:, :1].clone()}
        return self.in_turns({'student': lambda: student.step(batch, 0)}, self.arguments.rounds)

    def memory(self) -> Rows:
        """Peak of a process that makes five steps, and of one that only imports: MB of the
        process on a CPU, of what torch allocated on a GPU."""
        results = {}
        for generation in GENERATIONS:
            for mode in ['nothing'] + [name for name in self.modes if 'compiled' not in name]:
                done = subprocess.run(
                    [sys.executable, __file__, '-', '--peak', mode, generation, '--device',
                     str(self.device), '--ch', str(self.arguments.ch), '--img_size',
                     str(self.arguments.img_size)], capture_output=True, text=True, check=True)
                results.setdefault(generation, {})[mode] = float(done.stdout.split()[-1])
        return results

    def peak(self, mode: str, generation: str) -> float:
        """MB after five steps in a mode; of 'nothing', of the imports alone."""
        if mode != 'nothing':
            step = self.step(mode, generation)
            for _ in range(5):
                step()
        if self.device.type == 'cuda':
            return torch.cuda.max_memory_allocated() / 1e6
        if Path('/proc/self/status').is_file():  # getrusage counts the parent process in
            status = Path('/proc/self/status').read_text()
            return int(status.split('VmHWM:')[1].split()[0]) / 1e3
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

    def ceiling(self) -> Rows:
        """Matrix operations of a step over the rate of a large matrix product."""
        size = 2048 if self.device.type == 'cpu' else 8192
        results = {}
        for kind, dtype in (('float32', torch.float32), ('bfloat16', torch.bfloat16)):
            left, right = (torch.randn(size, size, device=self.device).to(dtype)
                           for _ in range(2))
            taken = self.in_turns({'product': lambda a=left, b=right: a @ b}, 9)
            results[f'{kind} TFLOP/s'] = 2 * size ** 3 / taken['product']['median_s'] / 1e12
        for generation in GENERATIONS:
            for mode in ('published', 'ours'):
                step = self.step(mode, generation)
                step()
                with FlopCounterMode(display=False) as counter:
                    step()
                flops = counter.get_total_flops()
                results[f'{generation}, {mode}: GFLOP a step'] = flops / 1e9
                results[f'{generation}, {mode}: s at that rate, float32'] = (
                    flops / 1e12 / results['float32 TFLOP/s'])
        return results

    def profile(self) -> Rows:
        """Where a step's time goes: ms of each operator itself, the ten longest."""
        results = {}
        for generation in GENERATIONS:
            for mode in ('published', 'ours'):
                step = self.step(mode, generation)
                for _ in range(2):
                    step()
                kinds = [torch.profiler.ProfilerActivity.CPU]
                if self.device.type == 'cuda':
                    kinds.append(torch.profiler.ProfilerActivity.CUDA)
                with torch.profiler.profile(activities=kinds) as profiler:
                    for _ in range(3):
                        step()
                    self.synchronize()
                spent = {event.key: (event.self_device_time_total if self.device.type == 'cuda'
                                     else event.self_cpu_time_total) / 3e3
                         for event in profiler.key_averages()}
                longest = sorted(spent, key=spent.get, reverse=True)[:10]
                results[f'{generation}, {mode}'] = {
                    **{name: round(spent[name], 1) for name in longest},
                    'all': round(sum(spent.values()), 1)}
        return results

    def test(self) -> Rows:
        """Soft masks of trainA (images of 256 px) as files: the whole published generator,
        image by image, against the layers of the mask, read and written beside the network."""
        paths = dataset.list_images(self.data_root / 'phantom' / 'trainA')[:self.arguments.images]
        results = {}
        for generation in GENERATIONS:
            with tempfile.TemporaryDirectory() as folder:
                functions = self.mask_writers(generation, paths, Path(folder))
                results[generation] = self.in_turns(functions, 3)
            for row in results[generation].values():
                row['images_per_s'] = len(paths) / row['median_s']
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

        def our_way() -> None:
            def save(soft: SoftMask) -> None:
                Image.fromarray(soft.mask).save(folder / f'{soft.path.stem}.png', compress_level=1)

            for _ in soft_masks(network, paths, config, self.device, finish=save):
                pass

        return {'published': published_way, 'ours': our_way}

    def data(self) -> Rows:
        """Training images per second out of the pipeline alone, and the share of its time that
        training waits for them."""
        results = {}
        for generation in GENERATIONS:
            config = self.config(generation, augment=generation == 'second', iteration=400)
            images = dataset.training_images(config.data_folder)
            stage = LabelTransferStage(config, self.device)
            store = dataset.ImageStore(config, stage.sample_size(config))

            def batches(iterations: int, config: Config = config, images: Any = images,
                        store: Any = store, stage: Any = stage) -> Any:
                return dataset.training_batches(
                    images, dataclasses.replace(config, iteration=iterations), 0, store,
                    augment=stage.augment_sample)

            for name, iterations in (('decoded', 100), ('kept in memory', 400)):
                start, count = time.perf_counter(), 0
                for batch in batches(iterations):
                    count += len(batch['A']) + len(batch['B'])
                results[f'{generation}, {name}: images/s'] = count / (time.perf_counter() - start)
            results[f'{generation}: share of training spent waiting'] = self.waiting(
                stage, batches(60))
        return results

    def waiting(self, stage: LabelTransferStage, batches: Any) -> float:
        """Share of the time of 50 iterations, after 10 to warm up, that goes into waiting."""
        waited, start = 0.0, time.perf_counter()
        for iteration in range(60):
            if iteration == 10:
                waited, start = 0.0, time.perf_counter()
            before = time.perf_counter()
            batch = {name: part.to(self.device, non_blocking=True)
                     for name, part in next(batches).items()}
            waited += time.perf_counter() - before
            numbers(stage.step(batch, 0))
        return waited / (time.perf_counter() - start)

    def postprocessing(self) -> Rows:
        """The CRF of the test images, one after the other and on all cores."""
        cases = dataset.find_cases(self.data_root / 'phantom', 'test')[:40]
        images = [np.asarray(dataset.read_image(case.image)) for case in cases]
        masks = [dataset.read_label(case.label).astype(np.uint8) * 200 + 20 for case in cases]
        with worker_pool() as pool:
            def one_by_one() -> None:
                for mask, image in zip(masks, images, strict=True):
                    segment(mask, 'crf', image)

            def on_all_cores() -> None:
                for _ in prefetch(
                        lambda pair: pool.submit(segment, pair[0], 'crf', pair[1]).result(),
                        zip(masks, images, strict=True), cpu_count()):
                    pass

            return self.in_turns({'one by one': one_by_one, 'all cores': on_all_cores}, 3)

    def processes(self) -> Rows:
        """A step of one process on one thread, and of two that share their gradients, on a
        thread each and with as many images each; and the size of the gradients."""
        networks = build_networks(self.config())
        results = {'gradients: MB': sum(4 * parameter.numel() for name, parameter
                                        in networks.named_parameters()
                                        if 'recon_decoder' not in name) / 1e6}
        size = ['--ch', str(self.arguments.ch), '--img_size', str(self.arguments.img_size)]
        for count in (1, 2):
            done = subprocess.run(
                [sys.executable, '-m', 'torch.distributed.run', '--standalone',
                 f'--nproc_per_node={count}', __file__, '-', '--shared', *size],
                env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True,
                check=True)
            results[f'{count} processes: s a step'] = float(done.stdout.split()[-1])
        return results

    def shared(self) -> None:
        """What each of those processes runs: prints the seconds of a step."""
        distributed.init('cpu')
        taken = self.in_turns({'ours': self.step('ours', 'first')}, 7)['ours']['median_s']
        if distributed.is_main_process():
            print(taken)
        distributed.shutdown()

    def start(self) -> Rows:
        """Seconds of --help, and from an empty folder to the end of the first iteration (drawing
        and checking the data, a checkpoint, an image grid and val included)."""
        results = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, flags in (('--help', ['--help']),
                                ('first iteration', ['--iteration', '1', '--data_root',
                                                     f'{folder}/data', '--result_dir',
                                                     f'{folder}/results'])):
                start = time.perf_counter()
                subprocess.run([sys.executable, PROJECT / 'main.py', *flags], check=True,
                               capture_output=True)
                results[f'{name}: s'] = time.perf_counter() - start
        return results

    def flat(self) -> Rows:
        """Memory of the process while a folder of 10,000 images is tested by a small network."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            drawn = dataset.list_images(self.data_root / 'phantom' / 'testA')
            (folder / 'many' / 'testA').mkdir(parents=True)
            for number in range(10_000):
                (folder / 'many' / 'testA' / f'{number:05d}.png').symlink_to(
                    drawn[number % len(drawn)].resolve())
            flags = {'dataset': 'many', 'data_root': str(folder), 'result_dir': str(folder / 'out'),
                     'ch': 8, 'n_res': 1, 'n_dis': 4, 'img_size': 32, 'recipe': 'published',
                     'device': str(self.device)}
            config = resolve(flags)
            checkpoint = config.run_folder / 'many_params_0000001.pt'
            checkpoint.parent.mkdir(parents=True)
            checkpoints.save(checkpoint, build_networks(config), config, 1, None, None, {})
            source = checkpoints.read(checkpoint)
            masks = staging_folder(config.result_folder / 'test1' / checkpoint.stem) / 'mask'
            samples, stop = [], threading.Event()
            watcher = threading.Thread(target=watch_memory, args=(masks, samples, stop))
            watcher.start()
            start = time.perf_counter()
            try:
                Trainer(resolve({**flags, 'phase': 'test'}, source.config)).test(source)
            finally:
                stop.set()
                watcher.join()
            taken = time.perf_counter() - start
        return {f'{least} images: MB': next((resident for count, resident in samples
                                             if count >= least), None)
                for least in (500, 1000, 2500, 5000, 7500, 9900)} | {'seconds': taken}


def numbers(result: StepResult) -> list[float]:
    """What training reads of every iteration; waits for a GPU."""
    return torch.stack([*result.losses.values(), result.mask_share, result.skipped]).tolist()


def watch_memory(folder: Path, samples: list[tuple[int, float]], stop: threading.Event) -> None:
    """Every second note how many files a folder holds and the memory of this process, MB."""
    while not stop.is_set():
        count = len(os.listdir(folder)) if folder.is_dir() else 0
        pages = int(Path('/proc/self/statm').read_text().split()[1])
        samples.append((count, pages * os.sysconf('SC_PAGE_SIZE') / 1e6))
        stop.wait(1)


SECTIONS = ('check', 'training', 'student', 'memory', 'ceiling', 'profile', 'test', 'data',
            'postprocessing', 'start', 'processes')


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--ch', type=int, default=16)
    parser.add_argument('--img_size', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--images', type=int, default=200, help='of the test, at most 200')
    parser.add_argument('--compile', action='store_true', help='measure compiled networks too')
    parser.add_argument('--data_root', type=Path, default=PROJECT / 'dataset')
    parser.add_argument('--only', nargs='+', choices=(*SECTIONS, 'flat'))
    parser.add_argument('--peak', nargs=2, help=argparse.SUPPRESS)
    parser.add_argument('--shared', action='store_true', help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure the sections and keep what is measured so far in the output file."""
    arguments = parse()
    bench = Bench(arguments)
    if arguments.peak:
        print(bench.peak(*arguments.peak))
        return
    if arguments.shared:
        bench.shared()
        return
    if not (arguments.data_root / 'phantom').is_dir():
        phantom.write_phantom(arguments.data_root / 'phantom')
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
