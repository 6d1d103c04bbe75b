"""The Trainer: the training loop of both stages, scoring on val, test."""
import math
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import checkpoint as checkpoints
import dataset
import interruption
import parallel
import rehearsal
import report
import selection
import steps
from label_transfer import LabelTransfer
from locator import Locating
from logbook import TrainingLog, set_earlier_run_aside
from masks import (SPLITS, Teacher, choose_teacher, mask_network, settings_of_network,
                   soft_masks)
from metrics import five_figures, mean_figures
from pictures import outlines
from postprocess import LOOK_AT_THE_PICTURE, clear_corners, segment, to_bytes, worker_pool
from results import ResultFolder
from settings import Settings
from student import Student
from utils import UserError, bar_interval, make_folder, pick_device, set_seed, spread

SHEET_PICTURES = 4  # pictures a sheet shows of trainA, and as many of val
SCORED_PICTURES = 32  # of either folder that the label-free score looks at
COLLAPSED = {'empty': (0, 0.005), 'full': (0.9, 1)}  # mean mask of disease pictures, from … to


class Trainer:
    """Runs what the settings say: training of either stage, scoring, test.

    What a training step does is in `label_transfer.py` and `student.py`.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.device = pick_device(settings.device)  # with torchrun that of this process
        torch.backends.cudnn.benchmark = settings.benchmark_flag
        set_seed(settings.seed)
        self.learner = None  # LabelTransfer or Student
        self.iteration = 0
        self.best_ja = None  # best JA on val, percent
        self.best_score = None  # where val has no labels: best label-free score, percent
        self.label_free = None  # what gives that score, and the pictures it looks at
        self.last_saved = None  # path of the newest checkpoint of this run
        self.mask_share = None  # running mean of the masks of disease pictures
        self.collapsed = ''  # how it has collapsed, if it has
        self.bad_steps = steps.BadSteps()
        self.stopped = False  # a signal ended the training

    # ------------------------------------------------------------------------------- training

    def train(self, start_from: checkpoints.Checkpoint | None = None) -> None:
        """One stage, from the beginning or, with --resume True, from `start_from` on.

        Without --resume the networks in `start_from` are where a new run begins. Stage 2 makes
        the stage-1 masks it needs itself.
        """
        settings = self.settings
        folder = make_folder(settings.run_folder)
        train_pictures, store, val_cases = self._checked_data()
        teacher = self._teacher(folder if settings.resume else None)
        rehearsal.check_memory(settings)

        self._prepare_learner(start_from, teacher)
        if self.iteration >= settings.iteration:
            print(f'nothing to do: {start_from.path} already is at iteration {self.iteration}; '
                  f'a larger --iteration of --stage {settings.stage} goes on')
            return
        if parallel.is_first() and not settings.resume:
            if aside := set_earlier_run_aside(settings.result_folder, settings.stage):
                print(f'an earlier run was moved to {aside}')
        parallel.wait()
        make_folder(folder)
        if parallel.is_first():
            checkpoints.clear_leftovers(folder)
        train_masks, val_masks = self._stage_1_masks(teacher, train_pictures['A'],
                                                     val_cases)
        if teacher and parallel.is_first():
            teacher.keep_copies(folder)

        if not val_cases:
            self._prepare_label_free_score(teacher, train_pictures)
        log = TrainingLog(settings.result_folder, settings.stage, self.iteration,
                          [*self.learner.LOSSES, 'mask_share', 'skipped'],
                          writes=parallel.is_first())
        shown = [(train_pictures['A'][:SHEET_PICTURES], train_masks),
                 ([case.picture for case in val_cases[:SHEET_PICTURES]], val_masks)]
        batches = dataset.training_batches(train_pictures, settings, self.iteration, store,
                                           train_masks)
        bar = tqdm(batches, 'training', settings.iteration, initial=self.iteration, unit='it',
                   smoothing=0.05, mininterval=bar_interval())
        try:
            with interruption.after_the_iteration():
                for batch in bar:
                    self._set_learning_rate()
                    batch = {name: part.to(self.device, non_blocking=True)
                             for name, part in batch.items()}
                    values = self._step(batch)
                    self.iteration += 1

                    self.stopped = values.pop('stop') > 0
                    log.add_losses(self.iteration, values)
                    if text := self.bad_steps.watch(values, self.iteration):
                        tqdm.write(text)
                    self._watch_for_collapse(values['mask_share'])
                    self._show(bar, values, len(batch['A']) + len(batch['B']))
                    last = self.iteration == settings.iteration
                    if parallel.is_first() and (last or self.iteration % settings.print_freq == 0):
                        log.add_sheet(self.iteration, self._sheet(shown))
                    # after a skipped step weights may be bad already; wait for a good one
                    due = self.iteration % settings.save_freq == 0 and not self.bad_steps.in_a_row
                    if last or due:
                        self._score_and_save(folder, val_cases, val_masks, train_masks, log)
                    elif self.stopped:  # unscored: who sends signals does not wait long
                        self._save(folder, log)
                    if self.stopped:
                        break
        finally:
            bar.close()
            batches.close()
            log.close()
        if self.stopped and not last:
            return
        print(f'finished at iteration {self.iteration}; checkpoints are in {folder}')
        if remark := getattr(self.learner, 'remark', str)():
            print(remark)

    def rehearse(self) -> None:
        """Check everything that `train` needs and print what it would do; nothing is written."""
        pictures, _, val_cases = self._checked_data()
        rehearsal.rehearse(self.settings, pictures, val_cases)

    def _checked_data(self):
        """Training pictures by domain, the store they are read from, and val cases, all of which
        can be read."""
        settings = self.settings
        shared = {'locator': (), 'published': ('batch_size',),
                  'student': ('batch_size', 'normal_batch')}
        for flag in shared[settings.scheme]:
            parallel.check_divisible(flag, getattr(settings, flag))
        problems = dataset.Problems()
        pictures = dataset.training_pictures(settings.data_folder, problems)
        store = dataset.TrainingPictures(settings)
        dataset.check_pictures(pictures['A'] + pictures['B'], problems, store.read)
        val_cases = self._checked_val_cases(problems)
        problems.settle(settings.skip_bad)
        pictures = {domain: problems.without(paths) for domain, paths in pictures.items()}
        for domain, paths in pictures.items():
            if not paths:
                raise UserError(f'{settings.data_folder}/train{domain}: not one picture can be used')
        return pictures, store, val_cases

    def _checked_val_cases(self, problems) -> list[dataset.Case]:
        """The val pictures that have a label."""
        cases = dataset.check_cases(
            dataset.validation_cases(self.settings.data_folder, problems), problems)
        return [case for case in cases if case.label]

    def _teacher(self, run_folder: Path | None, needed: bool = True) -> Teacher | None:
        """The network of the stage before, whose masks this stage uses; none where it uses none.
        Where it is not `needed`, none if it cannot be had."""
        if self.settings.stage < 2 and not self.settings.is_located:
            return None
        try:
            teacher = Teacher(self.settings, choose_teacher(self.settings, run_folder), self.device)
        except UserError:
            if needed:
                raise
            print('no stage-1 network at hand, so its masks are not shown beside the student\'s')
            return None
        print(f'{"locations" if self.settings.is_located else "stage-1 masks"}: {teacher.origin}')
        return teacher

    def _stage_1_masks(self, teacher, train_pictures, val_cases):
        """The mask files of trainA and of val by the pictures' stems; None where none is needed."""
        if teacher is None:
            return None, None
        return (teacher.masks('trainA', train_pictures),
                teacher.masks('valA', [case.picture for case in val_cases]) if val_cases else None)

    def _prepare_learner(self, start_from, teacher=None):
        settings = self.settings
        kind = {'locator': Locating, 'published': LabelTransfer, 'student': Student}
        self.learner = kind[settings.scheme](settings, self.device)
        if not start_from:
            if (settings.scheme, settings.student) == ('student', 'locator'):
                self._begin_from_locator(teacher)
            return
        checkpoints.load_networks(self.learner.networks, start_from)
        missing = [name for name in self.learner.networks if name not in start_from.networks]
        if missing:
            print(f'not in {start_from.path}, so newly initialised: {", ".join(missing)}')
        if self.settings.resume:
            self._go_on_from(start_from)

    def _begin_from_locator(self, teacher):
        if not teacher.locating:
            raise UserError('--student locator: goes on from a locator, and none taught '
                            f'{teacher.origin}; train one with --stage 0 and name it with --teacher, '
                            'or use --student unet')
        try:
            self.learner.begin_from(teacher.locating.networks['locator'])
        except ValueError as error:
            raise UserError(f'--student locator: {teacher.locating.path} is {error}; give it the --ch '
                            'and --img_ch of this run') from None

    def _go_on_from(self, start_from):
        try:
            for name, optimizer in self.learner.optimizers.items():
                checkpoints.load_optimizer(optimizer, start_from.optimizers[name])
            torch.set_rng_state(start_from.random_state['torch'])
            if 'cuda' in start_from.random_state and self.device.type == 'cuda':
                torch.cuda.set_rng_state_all(
                    start_from.random_state['cuda'][:torch.cuda.device_count()])
            share = start_from.progress.get('mask_share')
            self.mask_share = None if share is None else float(share)
            self.bad_steps.count = int(start_from.progress.get('skipped', 0))
            if 'recent_loss' in start_from.progress:
                self.learner.recent_loss.fill_(start_from.progress['recent_loss'])
        except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError):
            raise UserError(f'{start_from.path}: holds no whole state of a run to resume; to '
                            'start anew from its networks, give it as --checkpoint without '
                            '--resume') from None
        self.iteration = start_from.iteration
        self.best_ja = start_from.best_ja
        self.best_score = start_from.best_score
        self.last_saved = start_from.path
        if start_from.progress.get('is_best') and parallel.is_first():
            checkpoints.mark_best(start_from.path)  # in case the run ended before it could

    def _set_learning_rate(self):
        """Constant; with --decay_flag as the learner's schedule has it, by default falling linearly
        to 0 over the second half."""
        settings = self.settings
        rate = settings.lr
        if settings.decay_flag:
            schedule = getattr(self.learner, 'schedule', lambda progress: min(1, 2 - 2 * progress))
            rate *= schedule(self.iteration / settings.iteration)
        for optimizer in self.learner.optimizers.values():
            for group in optimizer.param_groups:
                group['lr'] = rate

    def _step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One iteration: the weighted losses by name, the mean mask, `mask_share`, whether the step
        was `skipped`, and above 0 where a process was asked to `stop`."""
        values = self.learner.step(batch, self.iteration)
        values['stop'] = torch.full_like(values['skipped'], interruption.wanted())
        numbers = parallel.mean(torch.stack(list(values.values()))).tolist()
        return dict(zip(values, numbers))

    def _watch_for_collapse(self, share: float) -> None:
        """Say it when the masks have become empty or full, and when that is over."""
        if self.settings.stage == 0 or not math.isfinite(share):
            return
        before = self.mask_share
        self.mask_share = share if before is None else 0.9 * before + 0.1 * share
        now = next((name for name, (low, high) in COLLAPSED.items()
                    if low <= self.mask_share <= high), '')
        if now != self.collapsed:
            tqdm.write(f'iteration {self.iteration}: masks of disease pictures '
                       + (f'have become {now}' if now else f'are no longer {self.collapsed}')
                       + f' (mean {self.mask_share:.3f})')
        self.collapsed = now

    def _show(self, bar, values, images):
        rate = bar.format_dict['rate']
        shown = {name: f'{values[name]:.4g}' for name in self.learner.SHOWN}
        if rate is not None:
            shown['images/s'] = f'{parallel.processes() * images * rate:.1f}'
        if self.collapsed:
            shown['masks'] = self.collapsed.upper()
        bar.set_postfix(shown, refresh=False)

    def _sheet(self, shown: list[tuple[list[Path], dict | None]]) -> dict[str, list[np.ndarray]]:
        """Rows of pictures for the training sheet; `shown` are pictures with their stage-1 masks,
        trainA and val apart, since they may share names."""
        self.learner.networks.eval()
        rows = {}
        with torch.no_grad():
            for paths, masks in shown:
                for batch in dataset.picture_batches(paths, self.settings, 1, masks):
                    batch = {name: part.to(self.device) for name, part in batch.items()}
                    column = self.learner.sheet_column(batch['image'], batch.get('mask'))
                    for name, picture in column.items():
                        rows.setdefault(name, []).append(picture)
        return rows

    def _prepare_label_free_score(self, teacher, pictures) -> None:
        """Without val labels a locator, where there is one, tells good checkpoints from bad."""
        settings = self.settings
        if settings.stage == 0:
            return
        try:
            locator = (teacher.checkpoint if self.settings.is_located else checkpoints.read(
                checkpoints.choose_for_test(settings.result_folder, settings.dataset, stage=0)))
        except UserError:
            print('no labels in val and no locator of stage 0, so the newest checkpoint counts as '
                  'the best')
            return
        own = settings_of_network(locator, settings)
        score = selection.LabelFreeScore(mask_network(locator, own, self.device), own.size,
                                         self.device)
        score.learn_normal(spread(pictures['B'], SCORED_PICTURES))
        self.label_free = score, spread(pictures['A'], SCORED_PICTURES)

    def _label_free_score(self, train_masks) -> float:
        """Mean score of the network in training over disease pictures of trainA, percent."""
        self.learner.networks.eval()
        score, paths = self.label_free

        def score_of(soft):
            image = np.asarray(dataset.read_picture(soft.path))
            return score(soft.path, self._segmentation(soft.mask, self.settings.default_rule, image, 1))

        made = soft_masks(self.learner.mask_network, parallel.my_share(paths), self.settings,
                          self.device, self._companions(train_masks), finish=score_of)
        return float(np.mean(parallel.gather(list(made))))

    def _score_and_save(self, folder: Path, val_cases, val_masks, train_masks, log) -> None:
        improved = False
        if val_cases:
            figures = self._score(val_cases, val_masks)
            log.add_val(self.iteration, figures)
            improved = self.best_ja is None or figures['JA'] > self.best_ja
            if improved:
                self.best_ja = figures['JA']
            tqdm.write(f'iteration {self.iteration}: val '
                       + ' '.join(f'{name} {value:.1f}' for name, value in figures.items())
                       + (' (best so far)' if improved else ''))
        elif self.label_free:
            score = self._label_free_score(train_masks)
            log.add_score(self.iteration, score)
            improved = self.best_score is None or score > self.best_score
            if improved:
                self.best_score = score
            tqdm.write(f'iteration {self.iteration}: label-free score {score:.1f}'
                       + (' (best so far)' if improved else ''))
        self._save(folder, log, improved)

    def _save(self, folder: Path, log, is_best: bool = False) -> None:
        """Write the checkpoint of this iteration, and delete what --keep no longer holds, unless it
        may be a bad one."""
        settings = self.settings
        for name, network in self.learner.networks.items():
            if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
                raise steps.Diverged(f'{name} holds numbers that are not finite at iteration '
                                     f'{self.iteration}, so it was not saved')
        log.flush()
        path = folder / checkpoints.file_name(settings.dataset, self.iteration)
        progress = {'mask_share': self.mask_share, 'skipped': self.bad_steps.count,
                    'is_best': is_best}
        if settings.stage == 0:
            progress['recent_loss'] = float(self.learner.recent_loss)
        if parallel.is_first():
            checkpoints.save(path, self.learner.networks, settings, self.iteration, self.best_ja,
                             self.best_score, self.learner.optimizers, progress)
            if is_best:
                checkpoints.mark_best(path)
            if not self.bad_steps.in_a_row:
                checkpoints.prune(folder, settings.dataset, settings.keep)
        self.last_saved = path

    def _score(self, cases: list[dataset.Case], stage_1_masks) -> dict[str, float]:
        """Mean of the five figures of the network in training over labelled cases, percent. Where
        the user names no rule of post-processing, Otsu's or, with --fit, the better of clean and fit."""
        self.learner.networks.eval()
        settings = self.settings
        rules = [settings.postprocess]
        if settings.postprocess in ('auto', 'none'):
            rules = ['clean', 'fit'] if settings.fit else ['otsu']

        def figures(soft):
            case = by_path[soft.path]
            image, label = np.asarray(dataset.read_picture(case.picture)), dataset.read_label(case.label)
            return [five_figures(self._segmentation(soft.mask, rule, image, settings.crf_t or 1), label)
                    for rule in rules]

        by_path = {case.picture: case for case in parallel.my_share(cases)}
        rows = parallel.gather(list(soft_masks(
            self.learner.mask_network, list(by_path), settings, self.device,
            self._companions(stage_1_masks), finish=figures)))
        means = [mean_figures(of_rule) for of_rule in zip(*rows)]
        return max(means, key=lambda mean: mean['JA'])

    # ----------------------------------------------------------------------- scoring and test

    def _companions(self, stage_1_masks):
        """The stage-1 masks where the network takes them as its second picture."""
        return (stage_1_masks if (self.settings.stage, self.settings.scheme) == (2, 'published')
                else None)

    def _segmentation(self, mask, rule, image, exponent, pool=None):
        arguments = mask, rule, image, exponent, self.settings.lesions
        if pool:
            segmentation = pool.submit(segment, *arguments).result()
        else:
            segmentation = segment(*arguments)
        return clear_corners(segmentation) if self.settings.clear_corners else segmentation

    def val(self, sources: list[tuple[checkpoints.Checkpoint, Settings]]) -> None:
        """Score checkpoints on val by every rule of post-processing, mark the best as best.pt and
        write val.json beside it. Each source comes with the settings its network runs by."""
        settings = self.settings
        problems = dataset.Problems()
        cases = self._checked_val_cases(problems)
        problems.settle(settings.skip_bad)
        if not cases:
            raise UserError(f'{settings.data_folder / "val"}: no labels to choose by; needed are '
                            f'val/images/ and val/labels/')
        folder = make_folder(sources[0][0].path.parent)
        if len({own.stage for _, own in sources}) > 1:
            raise UserError(f'--checkpoint: {folder} holds files of both stages; give those of one')
        if settings.postprocess == 'none':
            raise UserError('--postprocess none: soft masks alone cannot be scored; leave it out')
        paths = [case.picture for case in cases]
        masks = []
        for source, own in sources:
            companions = None
            if own.stage == 2 and own.scheme == 'published':
                companions = self._teacher(folder).masks('valA', paths)
            mine = parallel.my_share(paths)
            made = soft_masks(mask_network(source, own, self.device), mine, own, self.device,
                              companions, finish=lambda soft: soft.mask)
            masks.append(parallel.gather(list(tqdm(made, source.path.name, len(mine),
                                                   unit=' images', mininterval=bar_interval()))))
        rows = selection.score(cases, sources, masks)
        print(selection.table(rows))
        best = rows[0]
        if not parallel.is_first():
            return
        selection.write(folder, settings.dataset, len(cases), rows)
        if folder != checkpoints.MODEL_FOLDER:  # from there the newest is taken
            checkpoints.mark_best(folder / best['file'])
            print(f'{folder / "best.pt"} is {best["file"]}')
        print(f'best: JA {best["JA"]:.1f} with {selection.text(best)}, which test of it will use')
        made = next(made for (source, _), made in zip(sources, masks)
                    if checkpoints.fingerprint(source) == best['fingerprint'])
        self._report_val(folder, cases, made, best)

    def _report_val(self, folder: Path, cases, masks, best: dict) -> None:
        """report.html beside val.json: the cases by what val has chosen."""
        def entries():
            for case, mask in zip(cases, masks):
                image = np.asarray(dataset.read_picture(case.picture))
                label = dataset.read_label(case.label)
                found = self._segmentation(mask, best['rule'], image, best['crf_t'] or 1)
                yield report.Entry(case.name, {
                    'image': image, 'mask': mask, 'segmentation': to_bytes(found),
                    'label': to_bytes(label), 'overlay': outlines(image, found, label)},
                    five_figures(found, label))

        facts = {'checkpoint': str(folder / best['file']), 'iteration': str(best['iteration']),
                 'postprocess': selection.text(best)}
        report.write(folder / 'report.html', f'{self.settings.dataset}: val', facts, entries())
        print(f'pictures are in {folder / "report.html"}')

    def pseudo_mask(self) -> None:
        """The stage-1 masks of trainA, val and testA as folders syn_* of the result folder."""
        settings = self.settings
        teacher = Teacher(settings, choose_teacher(settings), self.device)
        print(f'stage-1 masks: {teacher.origin}')
        for split in SPLITS:
            folder = settings.data_folder / SPLITS[split]
            if folder.is_dir() or split == 'trainA':
                files = teacher.masks(split, dataset.list_pictures(folder))
                print(f'{len(files)} masks of {folder} are in {next(iter(files.values())).parent}')

    def test(self, source: checkpoints.Checkpoint) -> int:
        """Masks, pictures and figures of testA; translations of testB where they can be had. Files
        that cannot be used are left out and listed; the exit code, 1 where there were any."""
        settings = self.settings
        problems = dataset.Problems()
        cases = dataset.check_cases(dataset.find_cases(settings.data_folder, 'test', problems),
                                    problems)
        if not cases:
            problems.settle(skip=False)
        network = mask_network(source, settings, self.device)
        rule, exponent = selection.chosen_rule(settings, selection.stored_choice(source))
        # a student needs no teacher; its masks are shown beside the student's
        is_student = settings.scheme == 'student'
        teacher = (None if settings.stage < 2 or is_student and not settings.pictures
                   else self._teacher(source.path.parent, needed=not is_student))
        stage_1_masks = teacher.masks('testA', [case.picture for case in cases]) if teacher else None

        folder = settings.result_folder / f'test{settings.stage}' / source.path.stem
        results = ResultFolder(folder)
        mine = parallel.my_share(cases)
        by_path = {case.picture: case for case in mine}

        def write(soft):
            """The row of figures, if there is a label, and whether nothing was segmented."""
            case = by_path[soft.path]
            results.write_made(case, soft, stage_1_masks and stage_1_masks[case.name])
            if rule == 'none':
                return None, False
            image = (np.asarray(dataset.read_picture(case.picture))
                     if rule in LOOK_AT_THE_PICTURE or settings.pictures else None)
            segmentation = self._segmentation(soft.mask, rule, image, exponent, pool)
            row = results.write_segmentation(case, segmentation,
                                             image if settings.pictures else None)
            return row, not 0 < segmentation.mean() <= 0.9

        with worker_pool() if rule == 'crf' else nullcontext() as pool:
            made = soft_masks(network, list(by_path), settings, self.device,
                              self._companions(stage_1_masks), settings.pictures, write)
            made = parallel.gather(list(tqdm(made, 'testing', len(mine), unit=' images',
                                             mininterval=bar_interval())))
        if settings.pictures:
            self._translate_normal(source, results, problems)
        parallel.wait()
        code = 1 if problems.reasons else 0
        if not parallel.is_first():
            return code
        results.rows = [row for row, _ in made if row]
        results.write_overview(cases)
        used = {'dataset': settings.dataset, 'stage': settings.stage,
                'checkpoint': str(source.path), 'postprocess': rule,
                'crf_t': exponent if rule == 'crf' else None,
                'clear_corners': settings.clear_corners}
        if teacher:
            used['stage_1_masks'] = teacher.origin
        if problems.reasons:
            used['left_out'] = [str(path) for path in problems.reasons]
        results.write_metrics(used)
        if settings.pictures:
            results.write_report(used, cases)
        results.finish()
        self._report(results, used, len(cases), sum(is_blank for _, is_blank in made))
        if code:
            print(f'left out, since they cannot be used:\n{problems.listing}', file=sys.stderr)
        return code

    @staticmethod
    def _report(results, used, count, blank):
        """Print what came of a test of `count` pictures."""
        print('post-processing: ' + selection.text({'rule': used['postprocess'],
                                                    'crf_t': used['crf_t']}))
        if results.rows:
            print(results.table(count))
        else:
            print('no segmentations, so no figures' if used['postprocess'] == 'none'
                  else 'no labels: masks only, no figures')
        if blank:
            print(f'{blank} of {count} segmentations are empty or cover over 90 % of the picture')
        print(f'results are in {results.final}')

    def _translate_normal(self, source, results, problems) -> None:
        """testB through genB2A into translated_B/."""
        settings = self.settings
        if settings.scheme != 'published' or not (settings.data_folder / 'testB').is_dir():
            return
        if 'genB2A' not in source.networks:
            print('no translations of testB: the checkpoint holds no genB2A')
            return
        network = mask_network(source, settings, self.device, 'genB2A')
        paths = dataset.list_pictures(settings.data_folder / 'testB', problems)
        dataset.check_pictures(paths, problems)
        paths = parallel.my_share(problems.without(paths))
        for _ in soft_masks(network, paths, settings, self.device, with_pictures=True,
                            finish=lambda soft: results.write('translated_B', soft.path.stem,
                                                              soft.fake)):
            pass
