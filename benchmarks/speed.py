"""Speed and memory against the published procedure, restated plainly in `published.py`.

    python benchmarks/speed.py OUT.json                      # the whole table at --ch 16 --img_size 128
    python benchmarks/speed.py OUT.json --device cuda --ch 62 --img_size 256
    python benchmarks/speed.py OUT.json --only flat          # memory over a folder of 10,000 pictures

First it checks that both compute the same losses and gradients. Then it measures them in turns,
so that a machine that slows down slows both, and prints medians and ratios.
"""
import argparse
import dataclasses
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
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import dataset  # noqa: E402
import parallel  # noqa: E402
import phantom  # noqa: E402
import published  # noqa: E402
from label_transfer import LabelTransfer  # noqa: E402
from masks import soft_masks  # noqa: E402
from networks import build_networks, make_ready  # noqa: E402
from postprocess import segment, worker_pool  # noqa: E402
from settings import resolve  # noqa: E402
from student import Student  # noqa: E402
from trainer import Trainer  # noqa: E402
from utils import ahead, cores  # noqa: E402

MODES = {'published': {}, 'ours': {}, 'ours, amp': {'amp': True},
         'ours, compiled': {'compile': True}, 'ours, amp, compiled': {'amp': True, 'compile': True}}


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.data_root = arguments.data_root
        self.modes = [name for name in MODES if arguments.compile or 'compiled' not in name]

    def settings(self, generation='first', **changed):
        chosen = {'ch': self.arguments.ch, 'img_size': self.arguments.img_size, 'batch_size': 2,
                  'augment': False, 'generation': generation, 'dataset': 'phantom',
                  'recipe': 'published',
                  'data_root': str(self.data_root), **changed}
        return resolve(chosen)

    def wait(self):
        if self.device.type == 'cuda':
            torch.cuda.synchronize()

    def pictures(self, count, settings, seed=0):
        rng = torch.Generator().manual_seed(seed)
        return [(torch.rand(count, 3, *settings.size, generator=rng) * 2 - 1).to(self.device)
                for _ in 'AB']

    def step(self, mode, generation):
        """A function that makes one training step in a mode."""
        torch.manual_seed(0)
        settings = self.settings(generation, **MODES[mode])
        A, B = self.pictures(settings.batch_size, settings)
        if mode == 'published':
            training = published.PublishedTraining(settings, self.device)
            return lambda: training.step(A, B)
        learner = LabelTransfer(settings, self.device)
        return lambda: torch.stack(list(learner.step({'A': A, 'B': B}, 0).values())).tolist()

    def in_turns(self, functions: dict, rounds: int) -> dict:
        """Seconds of each function, one call each in every round: median, least and most."""
        for function in functions.values():
            for _ in range(2):  # the first calls choose algorithms and compile
                function()
        times = {name: [] for name in functions}
        for _ in range(rounds):
            for name, function in functions.items():
                self.wait()
                start = time.perf_counter()
                function()
                self.wait()
                times[name].append(time.perf_counter() - start)
        first = statistics.median(next(iter(times.values())))
        return {name: {'median_s': statistics.median(taken), 'least_s': min(taken),
                       'most_s': max(taken), 'ratio': statistics.median(taken) / first}
                for name, taken in times.items()}

    # ------------------------------------------------------------------------------- sections

    def check(self):
        """Losses and gradients of both on one batch, networks in evaluation mode (spectral norm's
        power iteration stands still); the largest relative differences.

        A rounding can change which pixel is the largest of a map, and with it a network's
        gradient by 1e-3, in either computation. So of four batches each network's least
        difference is taken.
        """
        found = {}
        for generation in ('first', 'second'):
            tried = [self.differences(generation, seed) for seed in range(4)]
            found[generation] = {
                'losses': max(losses for losses, _ in tried),
                'gradients': max(map(min, zip(*(gradients for _, gradients in tried))))}
            if max(found[generation].values()) > 1e-4:
                raise SystemExit(f'not the same computation: {generation} {tried}')
        return found

    def differences(self, generation, seed):
        settings = self.settings(generation)
        torch.manual_seed(seed)
        learner = LabelTransfer(settings, self.device)
        learner.networks.eval()
        learner.networks.train = lambda mode=True: None
        plain = published.build(settings).to(self.device).eval()
        plain.load_state_dict(learner.networks.state_dict())
        A, B = self.pictures(2, settings, seed)
        ours = {}

        def keep():
            ours.update({name: parameter.grad.clone() for name, parameter in
                         learner.networks.named_parameters() if parameter.grad is not None})

        for optimizer in learner.optimizers.values():
            optimizer.step = keep
        values = learner.step({'A': A, 'B': B}, 0)
        terms = published.generator_losses(plain, A, B, settings)
        losses = {'gen': sum(terms.values()),
                  'dis': published.discriminator_loss(plain, A, B, settings)}
        theirs = {}
        for kind, loss in losses.items():
            some = {name: parameter for name, parameter in plain.named_parameters()
                    if name.startswith(kind)}
            theirs |= dict(zip(some, torch.autograd.grad(loss, list(some.values()),
                                                         allow_unused=True)))
        of_networks = []
        for network in plain:
            names = [name for name in ours if name.startswith(f'{network}.')]
            difference, size = (torch.cat([part.flatten() for part in parts]).norm().item()
                                for parts in ([ours[name] - theirs[name] for name in names],
                                              [theirs[name] for name in names]))
            of_networks.append(difference / size)
        terms['discriminator'] = losses['dis']
        return max(abs(values[name].item() / term.item() - 1)
                   for name, term in terms.items()), of_networks

    def training(self):
        return {generation: self.in_turns({mode: self.step(mode, generation)
                                           for mode in self.modes}, self.arguments.rounds)
                for generation in ('first', 'second')}

    def student(self):
        settings = resolve({'stage': 2, 'img_size': self.arguments.img_size, 'dataset': 'phantom'})
        student = Student(settings, self.device)
        A, _ = self.pictures(settings.batch_size, settings)
        B, _ = self.pictures(settings.normal_batch, settings)
        batch = {'A': A, 'B': B, 'mask': A[:, :1].clone()}
        return self.in_turns({'student': lambda: student.step(batch, 0)}, self.arguments.rounds)

    def memory(self):
        """Peak of a process that makes five steps, and of one that only imports: MB of the
        process on a CPU, of what torch allocated on a GPU."""
        found = {}
        for generation in ('first', 'second'):
            for mode in ['nothing'] + [name for name in self.modes if 'compiled' not in name]:
                made = subprocess.run(
                    [sys.executable, __file__, '-', '--peak', mode, generation, '--device',
                     str(self.device), '--ch', str(self.arguments.ch), '--img_size',
                     str(self.arguments.img_size)], capture_output=True, text=True, check=True)
                found.setdefault(generation, {})[mode] = float(made.stdout.split()[-1])
        return found

    def peak(self, mode, generation):
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

    def ceiling(self):
        """Matrix operations of a step over the rate of a large matrix product."""
        size = 2048 if self.device.type == 'cpu' else 8192
        found = {}
        for kind, dtype in (('float32', torch.float32), ('bfloat16', torch.bfloat16)):
            one, other = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))
            taken = self.in_turns({'product': lambda: one @ other}, 9)['product']['median_s']
            found[f'{kind} TFLOP/s'] = 2 * size ** 3 / taken / 1e12
        for generation in ('first', 'second'):
            for mode in ('published', 'ours'):
                step = self.step(mode, generation)
                step()
                with FlopCounterMode(display=False) as counter:
                    step()
                flops = counter.get_total_flops()
                found[f'{generation}, {mode}: GFLOP a step'] = flops / 1e9
                found[f'{generation}, {mode}: s at that rate, float32'] = (
                    flops / 1e12 / found['float32 TFLOP/s'])
        return found

    def profile(self):
        """Where a step's time goes: ms of each operator itself, the ten longest."""
        found = {}
        for generation in ('first', 'second'):
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
                    self.wait()
                spent = {event.key: (event.self_device_time_total if self.device.type == 'cuda'
                                     else event.self_cpu_time_total) / 3e3
                         for event in profiler.key_averages()}
                longest = sorted(spent, key=spent.get, reverse=True)[:10]
                found[f'{generation}, {mode}'] = {
                    **{name: round(spent[name], 1) for name in longest},
                    'all': round(sum(spent.values()), 1)}
        return found

    def test(self):
        """Soft masks of trainA (pictures of 256 px) as files: the whole published generator,
        picture by picture, against the layers of the mask, read and written beside the network."""
        paths = dataset.list_pictures(self.data_root / 'phantom' / 'trainA')[:self.arguments.images]
        found = {}
        for generation in ('first', 'second'):
            settings = dataclasses.replace(self.settings(generation), phase='test', batch_size=8)
            torch.manual_seed(0)
            networks = build_networks(settings, ['genA2B'])
            plain = published.build(settings)['genA2B']
            plain.load_state_dict(networks['genA2B'].state_dict())
            plain.eval().to(self.device)
            network = make_ready(networks, settings, self.device).eval()['genA2B']
            folder = Path(tempfile.mkdtemp())

            def published_way():
                """Read, run the whole generator, write: one picture after the other."""
                for path in paths:
                    image = dataset.read_picture(path)
                    x = dataset.to_tensor(dataset.resize(image, settings.size))[None]
                    with torch.no_grad():
                        mask = plain(x.to(self.device))['mask'][0, 0].cpu().numpy()
                    mask = Image.fromarray(np.rint(mask * 255).astype(np.uint8))
                    mask.resize(image.size, Image.Resampling.BILINEAR).save(
                        folder / f'{path.stem}.png')

            def our_way():
                def save(soft):
                    Image.fromarray(soft.mask).save(folder / f'{soft.path.stem}.png',
                                                    compress_level=1)

                for _ in soft_masks(network, paths, settings, self.device, finish=save):
                    pass

            found[generation] = self.in_turns({'published': published_way, 'ours': our_way}, 3)
            for row in found[generation].values():
                row['images_per_s'] = len(paths) / row['median_s']
            shutil.rmtree(folder)
        return found

    def data(self):
        """Training pictures per second out of the pipeline alone, and the share of its time that
        training waits for them."""
        found = {}
        for generation in ('first', 'second'):
            settings = self.settings(generation, augment=generation == 'second', iteration=400)
            pictures = dataset.training_pictures(settings.data_folder)
            store = dataset.TrainingPictures(settings)
            for name in ('decoded', 'kept in memory'):
                start, count = time.perf_counter(), 0
                iterations = dataclasses.replace(settings, iteration=100 if name == 'decoded' else 400)
                for batch in dataset.training_batches(pictures, iterations, 0, store):
                    count += len(batch['A']) + len(batch['B'])
                found[f'{generation}, {name}: images/s'] = count / (time.perf_counter() - start)
            learner = LabelTransfer(settings, self.device)
            batches = dataset.training_batches(pictures, dataclasses.replace(settings, iteration=60),
                                               0, store)
            waited = 0.0
            for iteration in range(60):
                if iteration == 10:  # warm
                    waited, start = 0.0, time.perf_counter()
                before = time.perf_counter()
                batch = {name: part.to(self.device, non_blocking=True)
                         for name, part in next(batches).items()}
                waited += time.perf_counter() - before
                torch.stack(list(learner.step(batch, 0).values())).tolist()
            found[f'{generation}: share of training spent waiting'] = (
                waited / (time.perf_counter() - start))
        return found

    def postprocessing(self):
        """The CRF of the test pictures, one after the other and on all cores."""
        cases = dataset.find_cases(self.data_root / 'phantom', 'test')[:40]
        images = [np.asarray(dataset.read_picture(case.picture)) for case in cases]
        labels = [dataset.read_label(case.label).astype(np.uint8) * 200 + 20 for case in cases]
        with worker_pool() as pool:
            def one_by_one():
                for mask, image in zip(labels, images):
                    segment(mask, 'crf', image)

            def on_all_cores():
                for _ in ahead(lambda pair: pool.submit(segment, pair[0], 'crf', pair[1]).result(),
                               zip(labels, images), cores()):
                    pass

            return self.in_turns({'one by one': one_by_one, 'all cores': on_all_cores}, 3)

    def processes(self):
        """A step of one process on one thread, and of two that share their gradients, on a
        thread each and with as many pictures each; and the bytes they share."""
        networks = build_networks(self.settings())
        found = {'gradients: MB': sum(4 * parameter.numel() for name, parameter
                                      in networks.named_parameters()
                                      if 'recon_decoder' not in name) / 1e6}
        size = ['--ch', str(self.arguments.ch), '--img_size', str(self.arguments.img_size)]
        for count in (1, 2):
            made = subprocess.run(
                [sys.executable, '-m', 'torch.distributed.run', '--standalone',
                 f'--nproc_per_node={count}', __file__, '-', '--shared', *size],
                env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True,
                check=True)
            found[f'{count} processes: s a step'] = float(made.stdout.split()[-1])
        return found

    def shared(self):
        parallel.start('cpu')
        taken = self.in_turns({'ours': self.step('ours', 'first')}, 7)['ours']['median_s']
        if parallel.is_first():
            print(taken)
        parallel.finish()

    def start(self):
        """Seconds of --help, and from an empty folder to the end of the first iteration (the data
        drawn and checked, a checkpoint, a sheet and the val scores included)."""
        folder = Path(tempfile.mkdtemp())
        found = {}
        for name, flags in (('--help', ['--help']),
                            ('first iteration', ['--iteration', '1', '--data_root', folder / 'data',
                                                 '--result_dir', folder / 'results'])):
            start = time.perf_counter()
            subprocess.run([sys.executable, PROJECT / 'main.py', *flags], check=True,
                           capture_output=True)
            found[f'{name}: s'] = time.perf_counter() - start
        shutil.rmtree(folder)
        return found

    def flat(self):
        """Memory of the process while a folder of 10,000 pictures is tested by a small network."""
        folder = Path(tempfile.mkdtemp())
        try:
            drawn = dataset.list_pictures(self.data_root / 'phantom' / 'testA')
            (folder / 'many' / 'testA').mkdir(parents=True)
            for number in range(10_000):
                os.link(drawn[number % len(drawn)], folder / 'many' / 'testA' / f'{number:05d}.png')
            flags = {'dataset': 'many', 'data_root': str(folder), 'result_dir': str(folder / 'out'),
                     'ch': 8, 'n_res': 1, 'n_dis': 4, 'img_size': 32, 'recipe': 'published',
                     'device': str(self.device)}
            settings = resolve(flags)
            checkpoint = Path(folder) / 'out' / 'many' / 'model1' / 'many_params_0000001.pt'
            checkpoint.parent.mkdir(parents=True)
            import checkpoint as checkpoints
            checkpoints.save(checkpoint, build_networks(settings), settings, 1, None, None, {})
            source = checkpoints.read(checkpoint)
            seen, stop = [], False

            def watch():
                while not stop:
                    done = folder / 'out' / 'many' / 'test1' / f'.{checkpoint.stem}.part' / 'mask'
                    count = len(os.listdir(done)) if done.is_dir() else 0
                    with open('/proc/self/statm') as file:
                        resident = int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6
                    seen.append((count, resident))
                    time.sleep(1)

            import threading
            watcher = threading.Thread(target=watch)
            watcher.start()
            start = time.perf_counter()
            Trainer(resolve({**flags, 'phase': 'test'}, source.settings)).test(source)
            taken = time.perf_counter() - start
            stop = True
            watcher.join()
            marks = {}
            for wanted in (500, 1000, 2500, 5000, 7500, 9900):
                marks[f'{wanted} pictures: MB'] = next(
                    (resident for count, resident in seen if count >= wanted), None)
            return marks | {'seconds': taken}
        finally:
            shutil.rmtree(folder)


SECTIONS = ('check', 'training', 'student', 'memory', 'ceiling', 'profile', 'test', 'data',
            'postprocessing', 'start', 'processes')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    arguments = parser.parse_args()
    bench = Bench(arguments)
    if arguments.peak:
        print(bench.peak(*arguments.peak))
        return
    if arguments.shared:
        bench.shared()
        return
    if not (arguments.data_root / 'phantom').is_dir():
        phantom.write_phantom(arguments.data_root / 'phantom')
    results = {'machine': f'{platform.machine()}, {cores()} cores', 'torch': torch.__version__,
               'threads': torch.get_num_threads(),
               'device': (torch.cuda.get_device_name() if bench.device.type == 'cuda' else 'cpu'),
               'ch': arguments.ch, 'img_size': arguments.img_size}
    for section in arguments.only or SECTIONS:
        results[section] = getattr(bench, section)()
        print(section, json.dumps(results[section], indent=1), flush=True)
        arguments.out.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    main()
