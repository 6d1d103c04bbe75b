"""The Trainer: stage-1 training, scoring on val, test."""
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import checkpoint as checkpoints
import dataset
import losses
import pictures
from logbook import TrainingLog, set_earlier_run_aside
from metrics import five_figures, mean_figures
from networks import Translation, build_networks, clip_rho
from postprocess import clear_background, otsu, to_bytes
from results import ResultFolder
from settings import DISCRIMINATORS, GENERATORS, TEST_BATCH_SIZE, Settings
from utils import UserError, bar_interval, make_folder, pick_device, set_seed

LOSS_NAMES = ['discriminator', 'generator', 'adversarial', 'cycle', 'identity',
              'class_attention', 'recon']
SHEET_PICTURES = 4  # pictures a sheet shows of trainA, and as many of val
DIRECTIONS = (('A', 'B'), ('B', 'A'))  # source, target


class Diverged(Exception):
    """A loss is no longer a number."""


class Trainer:
    """Holds the networks of one run and does with them what the settings say."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.device = pick_device(settings.device)
        torch.backends.cudnn.benchmark = settings.benchmark_flag
        set_seed(settings.seed)
        self.networks = torch.nn.ModuleDict()
        self.iteration = 0
        self.best_ja = None
        self.last_saved = None  # path of the newest checkpoint of this run

    def autocast(self):
        """bfloat16 where it is safe with --amp, else nothing."""
        if self.settings.amp:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    # ------------------------------------------------------------------------------- training

    def train(self, start_from: checkpoints.Checkpoint | None = None) -> None:
        """Stage 1, from the beginning or, with --resume True, from `start_from` on.

        Without --resume the networks in `start_from` are where a new run begins.
        """
        settings = self.settings
        folder = make_folder(settings.result_folder / f'model{settings.stage}')
        train_pictures = dataset.training_pictures(settings.data_folder)
        val_cases = dataset.validation_cases(settings.data_folder)
        dataset.check_pictures(train_pictures['A'] + train_pictures['B'])
        dataset.check_cases(val_cases)

        self._prepare_networks(start_from)
        if self.iteration >= settings.iteration:
            print(f'nothing to do: {start_from.path} already is at iteration {self.iteration}; '
                  'a larger --iteration goes on')
            return
        if not settings.resume:
            if aside := set_earlier_run_aside(settings.result_folder, settings.stage):
                print(f'an earlier run was moved to {aside}')
            make_folder(folder)

        log = TrainingLog(settings.result_folder, settings.stage, self.iteration, LOSS_NAMES)
        sheet_paths = (train_pictures['A'][:SHEET_PICTURES]
                       + [case.picture for case in val_cases[:SHEET_PICTURES]])
        batches = dataset.training_batches(train_pictures, settings, self.iteration)
        bar = tqdm(batches, 'training', settings.iteration, initial=self.iteration, unit='it',
                   smoothing=0.05, mininterval=bar_interval())
        try:
            for batch in bar:
                self._set_learning_rate()
                real = {domain: batch[domain].to(self.device, non_blocking=True)
                        for domain in 'AB'}
                values = self._step(real)
                self.iteration += 1

                log.add_losses(self.iteration, values)
                self._show(bar, values)
                last = self.iteration == settings.iteration
                if last or self.iteration % settings.print_freq == 0:
                    log.add_sheet(self.iteration, self._sheet(sheet_paths))
                if last or self.iteration % settings.save_freq == 0:
                    self._score_and_save(folder, val_cases, log)
        finally:
            bar.close()
            log.close()
        print(f'finished at iteration {self.iteration}; checkpoints are in {folder}')

    def _prepare_networks(self, start_from):
        self.networks = build_networks(self.settings)
        if start_from:
            checkpoints.load_networks(self.networks, start_from, self.settings)
            if missing := [name for name in self.networks if name not in start_from.networks]:
                print(f'not in {start_from.path}, so newly initialised: {", ".join(missing)}')
        self.networks.to(self.device)
        self.optimizers = {
            'generators': self._adam(GENERATORS), 'discriminators': self._adam(DISCRIMINATORS)}
        if start_from and self.settings.resume:
            self._go_on_from(start_from)

    def _adam(self, names):
        parameters = [parameter for name in names for parameter in self.networks[name].parameters()]
        return torch.optim.Adam(parameters, self.settings.lr, betas=(0.5, 0.999),
                                weight_decay=self.settings.weight_decay)

    def _go_on_from(self, start_from):
        try:
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(start_from.optimizers[name])
            torch.set_rng_state(start_from.random_state['torch'])
            if 'cuda' in start_from.random_state and self.device.type == 'cuda':
                torch.cuda.set_rng_state_all(
                    start_from.random_state['cuda'][:torch.cuda.device_count()])
        except (KeyError, ValueError, TypeError, RuntimeError):
            raise UserError(f'{start_from.path}: holds no whole state of a run to resume; to '
                            'start anew from its networks, give it as --checkpoint without '
                            '--resume') from None
        self.iteration = start_from.iteration
        self.best_ja = start_from.best_ja
        self.last_saved = start_from.path

    def _set_learning_rate(self):
        """Constant; with --decay_flag falling linearly to 0 over the second half."""
        settings = self.settings
        rate = settings.lr
        if settings.decay_flag:
            rate *= min(1, 2 * (settings.iteration - self.iteration) / settings.iteration)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group['lr'] = rate

    def _step(self, real: dict[str, Tensor]) -> dict[str, float]:
        """One iteration on a batch of each domain; the weighted losses by name."""
        self.networks.train()
        with self.autocast():
            translated, kept = self._translate(real)
        discriminator_loss = self._update_discriminators(real, translated)
        values = self._update_generators(real, translated, kept)
        names = ['discriminator', *values]
        numbers = torch.stack([discriminator_loss, *values.values()]).tolist()
        for name, number in zip(names, numbers):
            if not math.isfinite(number):
                raise Diverged(f'the {name} loss became {number} at iteration '
                               f'{self.iteration + 1}; try a lower --lr')
        return dict(zip(names, numbers))

    def _translate(self, real) -> tuple[dict[str, Translation], dict[str, Translation]]:
        """By domain d of the pictures: them translated, and them kept (put through the generator
        that leads to d). One pass a generator: nothing in it mixes the pictures of a batch."""
        translated, kept = {}, {}
        for source, target in DIRECTIONS:
            generator = self.networks[f'gen{source}2{target}']
            made = generator(torch.cat([real[source], real[target]]),
                             with_recon=self.settings.recon_weight > 0)
            translated[source], kept[target] = split(made, len(real[source]))
        return translated, kept

    def _update_discriminators(self, real, translated) -> Tensor:
        """dis_weight · Σ over the four discriminators of (real → 1) + (fake → 0)."""
        loss = 0
        with self.autocast():
            for source, domain in DIRECTIONS:
                # detached: this loss does not go back into the generators
                both = torch.cat([real[domain], translated[source].fake.detach().float()])
                for discriminator in self._discriminators(domain):
                    of_real, of_fake = split(discriminator(both), len(real[domain]))
                    loss = (loss + losses.adversarial(of_real, real=True)
                            + losses.adversarial(of_fake, real=False))
        loss = self.settings.dis_weight * loss
        self._descend('discriminators', loss)
        return loss.detach()

    def _update_generators(self, real, translated, kept) -> dict[str, Tensor]:
        """Σ of the weighted losses; discriminators judge but collect no gradient."""
        self._let_discriminators_learn(False)
        with self.autocast():
            terms = self._generator_losses(real, translated, kept)
        total = sum(terms.values())
        self._descend('generators', total)
        for name in GENERATORS:
            clip_rho(self.networks[name])
        self._let_discriminators_learn(True)
        return {name: value.detach() for name, value in {'generator': total, **terms}.items()}

    def _generator_losses(self, real, translated, kept) -> dict[str, Tensor]:
        """The weighted terms of the generators' loss, by name."""
        settings = self.settings
        weights = {'adversarial': settings.adv_weight, 'cycle': settings.cycle_weight,
                   'identity': settings.identity_weight, 'class_attention': settings.cam_weight,
                   'recon': settings.recon_weight}
        terms = dict.fromkeys(weights, torch.zeros((), device=self.device))
        for source, target in DIRECTIONS:
            image, made, stayed = real[source], translated[source], kept[source]
            back = self.networks[f'gen{target}2{source}'](made.fake.float(), with_recon=False)
            # joint discrimination: the second generation's composite has to pass as well
            judged = [discriminator(picture.float())
                      for discriminator in self._discriminators(target)
                      for picture in (made.fake, made.composite) if picture is not None]
            parts = {
                'adversarial': sum(losses.adversarial(one, real=True) for one in judged),
                'cycle': losses.picture_distance(back.fake, image),
                'identity': losses.picture_distance(stayed.fake, image),
                'class_attention': losses.class_attention(made.cam_logit, source_domain=True)
                + losses.class_attention(stayed.cam_logit, source_domain=False)}
            if made.recon is not None:
                parts['recon'] = losses.picture_distance(made.recon, image)
            for name, part in parts.items():
                terms[name] = terms[name] + weights[name] * part
        return terms

    def _discriminators(self, domain):
        """The global and the local one that know the pictures of a domain."""
        return self.networks[f'disG{domain}'], self.networks[f'disL{domain}']

    def _let_discriminators_learn(self, learn):
        for name in DISCRIMINATORS:
            self.networks[name].requires_grad_(learn)

    def _descend(self, name, loss):
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[name].step()

    def _show(self, bar, values):
        rate = bar.format_dict['rate']
        images = '' if rate is None else f'{2 * self.settings.batch_size * rate:.1f}'
        bar.set_postfix({'D': f'{values["discriminator"]:.3g}',
                         'G': f'{values["generator"]:.4g}', 'images/s': images}, refresh=False)

    def _sheet(self, paths) -> dict[str, list[np.ndarray]]:
        """Rows of image, heatmap, mask, translation, content or composite, reconstruction.

        The first generation's reconstruction decoder enters no loss and stays untrained; the
        picture that comes back from A to B to A stands in its place.
        """
        self.networks.eval()
        first = self.settings.generation == 'first'
        there, back = self.networks['genA2B'], self.networks['genB2A']
        rows = {}
        with torch.no_grad():
            for batch in dataset.picture_batches(paths, self.settings, 1):
                made = there(batch.to(self.device))
                column = {
                    'image': pictures.from_tensor(batch[0]),
                    'heatmap': pictures.from_heatmap(to_array(made.heatmap[0, 0])),
                    'mask': pictures.from_mask(to_array(made.mask[0, 0])),
                    'translation': pictures.from_tensor(made.fake[0])}
                if first:
                    column['content'] = pictures.from_tensor(made.content[0])
                    column['A to B to A'] = pictures.from_tensor(back(made.fake).fake[0])
                else:
                    column['composite'] = pictures.from_tensor(made.composite[0])
                    column['recon'] = pictures.from_tensor(made.recon[0])
                for name, picture in column.items():
                    rows.setdefault(name, []).append(picture)
        return rows

    def _score_and_save(self, folder: Path, val_cases, log) -> None:
        settings = self.settings
        improved = False
        if val_cases:
            figures = self.val(val_cases)
            log.add_val(self.iteration, figures)
            improved = self.best_ja is None or figures['JA'] > self.best_ja
            if improved:
                self.best_ja = figures['JA']
            tqdm.write(f'iteration {self.iteration}: val '
                       + ' '.join(f'{name} {value:.1f}' for name, value in figures.items())
                       + (' (best so far)' if improved else ''))
        log.flush()
        path = folder / checkpoints.file_name(settings.dataset, self.iteration)
        checkpoints.save(path, self.networks, settings, self.iteration, self.best_ja,
                         self.optimizers)
        self.last_saved = path
        if improved:
            checkpoints.mark_best(path)
        checkpoints.prune(folder, settings.dataset, settings.keep)

    # ----------------------------------------------------------------------- scoring and test

    def val(self, cases: list[dataset.Case]) -> dict[str, float]:
        """Mean of the five figures over labelled cases, percent."""
        self.networks.eval()
        return mean_figures([
            five_figures(otsu(mask), dataset.read_label(case.label))
            for case, mask, _, _ in self._segment(cases, with_pictures=False)])

    def _segment(self, cases, with_pictures):
        """For each case: (case, soft mask as uint8 in the picture's size, heatmap, fake or None)."""
        settings = self.settings
        generator = self.networks['genA2B']
        batch_size = settings.batch_size if settings.phase == 'test' else TEST_BATCH_SIZE
        batches = dataset.picture_batches([case.picture for case in cases], settings, batch_size)
        done = iter(cases)
        for batch in batches:
            with torch.no_grad(), self.autocast():
                image = batch.to(self.device)
                made = (generator(image, with_recon=False) if with_pictures
                        else generator.predict_mask(image))
            for index in range(len(batch)):
                case = next(done)
                with Image.open(case.picture) as picture:
                    size = picture.size
                mask = to_array(made.mask[index, 0])
                if settings.generation == 'second':
                    mask = clear_background(mask, batch[index].permute(1, 2, 0).numpy())
                fake = pictures.from_tensor(made.fake[index]) if with_pictures else None
                yield (case, to_bytes(resize_map(mask, size)),
                       resize_map(to_array(made.heatmap[index, 0]), size), fake)

    def test(self, source: checkpoints.Checkpoint) -> None:
        """Masks, pictures and figures of testA; translations of testB where they can be had."""
        settings = self.settings
        cases = dataset.find_cases(settings.data_folder, 'test')
        dataset.check_cases(cases)
        wanted = ['genA2B'] + (['genB2A'] if settings.pictures else [])
        self.networks = build_networks(settings, [n for n in wanted if n in source.networks])
        checkpoints.load_networks(self.networks, source, settings)
        self.networks.to(self.device).eval()

        folder = settings.result_folder / f'test{settings.stage}' / source.path.stem
        results = ResultFolder(folder)
        blank = 0
        for case, mask, heatmap, fake in tqdm(self._segment(cases, settings.pictures), 'testing',
                                              len(cases), unit=' images',
                                              mininterval=bar_interval()):
            segmentation = otsu(mask)
            blank += not 0 < segmentation.mean() <= 0.9
            label = dataset.read_label(case.label) if case.label else None
            results.write('mask', case.name, mask)
            results.write('segmentation', case.name, segmentation.astype(np.uint8) * 255)
            results.write('heatmap', case.name, pictures.from_heatmap(heatmap))
            if settings.pictures:
                results.write('translated', case.name, resize_picture(fake, mask.shape[::-1]))
                results.write_overlay(case, segmentation, label)
            if label is not None:
                results.add_figures(case.name, five_figures(segmentation, label))
        results.write_overview()
        if settings.pictures:
            self._translate_normal(results)
        results.write_metrics(settings.dataset, settings.stage, source.path)
        results.finish()
        print(results.table(len(cases)) if results.rows else 'no labels: masks only, no figures')
        if blank:
            print(f'{blank} of {len(cases)} segmentations are empty or cover over 90 % of the '
                  'picture')
        print(f'results are in {folder}')

    def _translate_normal(self, results) -> None:
        """testB through genB2A into translated_B/."""
        settings = self.settings
        if not (settings.data_folder / 'testB').is_dir():
            return
        if 'genB2A' not in self.networks:
            print('no translations of testB: the checkpoint holds no genB2A')
            return
        paths = dataset.list_pictures(settings.data_folder / 'testB')
        done = iter(paths)
        for batch in dataset.picture_batches(paths, settings, settings.batch_size):
            with torch.no_grad(), self.autocast():
                made = self.networks['genB2A'](batch.to(self.device), with_recon=False)
            for fake in made.fake:
                path = next(done)
                with Image.open(path) as picture:
                    results.write('translated_B', path.stem,
                                  resize_picture(pictures.from_tensor(fake), picture.size))


def split(outputs, count: int):
    """A named tuple of batches as two: the first `count` pictures, and the others."""
    parts = zip(*((None, None) if value is None else (value[:count], value[count:])
                  for value in outputs))
    return tuple(type(outputs)(*part) for part in parts)


def to_array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def resize_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A float array H×W resized bilinearly to (width, height)."""
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def resize_picture(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture resized bicubically to (width, height)."""
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
