"""The Trainer: the training loop of every stage, scoring on val, and the test."""
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import checkpoint as checkpoints
import dataset
from config import Config
from inference import model_selection
from inference.evaluation import CaseResult, test_cases, translate_normal, val_masks
from inference.metrics import METRIC_INFO, METRICS, all_metrics, summarize
from inference.plausibility import mask_warnings
from inference.postprocess import to_segmentation
from inference.soft_masks import mask_network
from networks import count_parameters
from reporting.results import ResultFolder, table, write_val_report
from reporting.training_log import TrainingLog, archive_earlier_run
from runtime import distributed, preflight, signals
from runtime.files import make_folder
from runtime.runs import QUICK_TEXT
from runtime.time_left import Later, TimeLeft
from stages.base import Stage
from stages.label_transfer import LabelTransferStage
from stages.localizer import LocalizerStage
from stages.optim import CollapseMonitor, NonFiniteError, NonFiniteGuard
from stages.pseudo_labels import SPLITS, PseudoLabeler, choose_teacher, find_teacher
from stages.student import StudentStage
from stages.trial import seconds_per_iteration
from stages.validation import Validation
from utils import UserError, pick_device, progress_interval, set_seed

# by Config.method
STAGES: dict[str, type[Stage]] = {
    'localizer': LocalizerStage, 'label_transfer': LabelTransferStage,
    'label_transfer_refine': LabelTransferStage, 'student': StudentStage}
Source = tuple[checkpoints.Checkpoint, Config]  # and the Config that its network runs by
GRID_IMAGES = 4  # of trainA in an image grid, and as many of val


class Data(NamedTuple):
    """What a training works on."""

    images: dict[str, list[Path]]  # of A and B
    store: dataset.ImageStore  # what they are read from
    val_cases: list[dataset.Case]  # labeled
    teacher: PseudoLabeler | None


class Trainer:
    """Runs what a Config says; what a training step computes is in `stages/`."""

    def __init__(self, config: Config, later: Later | None = None) -> None:
        """`later` is what the same command trains after this stage; None where it trains no other.
        """
        self.later = later
        self.device = pick_device(config.device)  # with torchrun that of this process
        self.config = preflight.with_usable_amp(config, self.device)
        torch.backends.cudnn.benchmark = config.benchmark_flag
        set_seed(config.seed)
        self.stage_class = STAGES[config.method]
        self.stage = None
        self.iteration = 0
        self.best_ja = None  # best JA on val, percent
        self.best_score = None  # where val has no labels: best label-free score, percent
        self.validation: Validation | None = None  # what gives either
        self.time_left: TimeLeft | None = None  # while training
        self.soft_masks = {'train': None, 'val': None}  # the teacher's, by image stem
        self.last_saved = None  # path of the newest checkpoint of this run
        self.guard, self.collapse = NonFiniteGuard(), CollapseMonitor()
        self.stop_requested = False  # by a signal

    # ------------------------------------------------------------------------------- training

    def train(self, start_from: checkpoints.Checkpoint | None = None) -> None:
        """One stage, from the beginning or, with --resume True, from `start_from` on.
        Without --resume its networks are where a new run begins. Soft masks of a teacher are made.
        """
        config = self.config
        make_folder(config.run_folder)
        data = self._load_data()
        self._build_stage(data, start_from)
        if self.iteration >= config.iteration:
            print(f'nothing to do: {start_from.path} already is at iteration {self.iteration}; '
                  f'a larger --iteration of --stage {config.stage} goes on')
            return
        self._prepare_run(data)
        self.time_left = TimeLeft(config.iteration - self.iteration,
                                  -(-(config.iteration - self.iteration) // config.save_freq),
                                  self.later)
        with self._open_log() as log, self._batches(data) as batches, signals.deferred():
            for batch in batches:
                self._set_learning_rate()
                values = self._step(batch)
                self._report(log, batches, values)
                if self._grid_due():
                    log.add_image_grid(self.iteration, self._image_grid(data))
                if self._validation_due():
                    self._validate_and_save(log)
                elif self.stop_requested:  # unscored: who sends signals does not wait long
                    self._save(log)
                if self.stop_requested:
                    break
        if self.iteration == config.iteration:
            print(f'finished at iteration {self.iteration}; checkpoints are in {config.run_folder}')
            if warning := self.stage.final_warning():
                print(warning)

    def dry_run(self, with_teacher: bool) -> float | None:
        """Check what `train` needs, a teacher if it is there; print its plan; write nothing.
        Returns what `seconds_to_train` does."""
        data = self._load_data(with_teacher)
        return preflight.dry_run(self.config, count_parameters(self.config), data.images,
                                 data.val_cases, self.seconds_to_train)

    def seconds_to_train(self, iterations: int) -> float | None:
        """About how long so many iterations take, by a trial; None where memory may be short."""
        needed, available = preflight.check_memory(self.config, count_parameters(self.config))
        if distributed.from_main(lambda: needed > available):
            return None
        return iterations * seconds_per_iteration(self.stage_class, self.config, self.device)

    # ------------------------------------------------------------------ before the first iteration

    def _load_data(self, with_teacher: bool = True) -> Data:
        """Checked images, and the teacher where the stage has one. Raises UserError."""
        config, teacher = self.config, None
        for option in self.stage_class.batch_options:
            distributed.check_divisible(option, getattr(config, option))
        store = dataset.ImageStore(config, self.stage_class.sample_size(config))
        images, val_cases = dataset.checked_training_data(config, store)
        if with_teacher:
            run_folder = config.run_folder if config.resume else None
            teacher = find_teacher(config, self.device, run_folder)
            preflight.check_memory(config, count_parameters(config))
            of_teacher = teacher and teacher.checkpoint
            if of_teacher and of_teacher.config.get('quick') and not config.quick:
                print(f'warning: the teacher {of_teacher.path} was {QUICK_TEXT}; train its stage '
                      f'in full first: --stage {of_teacher.config.get("stage", 1)}')
        return Data(images, store, val_cases, teacher)

    def _build_stage(self, data: Data, start_from: checkpoints.Checkpoint | None) -> None:
        """The stage, with what it takes from a checkpoint or from its teacher."""
        self.stage = self.stage_class(self.config, self.device)
        if not start_from:
            self.stage.start()
            return
        missing = [name for name in self.stage.networks if name not in start_from.networks]
        if len(missing) == len(self.stage.networks):
            raise UserError(f'{start_from.path}: holds none of the networks of stage '
                            f'{self.config.stage} ({", ".join(missing)})')
        checkpoints.load_networks(self.stage.networks, start_from)
        if missing:
            print(f'not in {start_from.path}, so newly initialized: {", ".join(missing)}')
        if self.config.resume:
            self._resume(start_from)

    def _resume(self, start_from: checkpoints.Checkpoint) -> None:
        progress = start_from.progress
        try:
            for name, optimizer in self.stage.optimizers.items():
                checkpoints.load_optimizer(optimizer, start_from.optimizers[name])
            torch.set_rng_state(start_from.random_state['torch'])
            if 'cuda' in start_from.random_state and self.device.type == 'cuda':
                states = start_from.random_state['cuda'][:torch.cuda.device_count()]
                torch.cuda.set_rng_state_all(states)
            share = progress.get('mask_share')
            self.collapse.mask_share = None if share is None else float(share)
            self.guard.count = int(progress.get('skipped', 0))
            self.stage.load_state(progress.get('stage', {}))
        except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError):
            raise UserError(f'{start_from.path}: holds no whole state of a run to resume; to start '
                            'anew from its networks, give it as --checkpoint without --resume'
                            ) from None
        self.iteration = start_from.iteration
        self.best_ja, self.best_score = start_from.best_ja, start_from.best_score
        self.last_saved = start_from.path
        if progress.get('is_best') and distributed.is_main_process():
            checkpoints.mark_best(start_from.path)  # in case the run ended before it could

    def _prepare_run(self, data: Data) -> None:
        """An earlier run moved away, the teacher's soft masks, the label-free score."""
        config, folder = self.config, self.config.run_folder
        is_main, teacher = distributed.is_main_process(), data.teacher
        if is_main and not config.resume:
            if archive := archive_earlier_run(config.result_folder, config.stage):
                print(f'an earlier run was moved to {archive}')
        distributed.barrier()
        make_folder(folder)
        if is_main:
            checkpoints.clear_leftovers(folder)
        if teacher:
            self.soft_masks['train'] = teacher.masks('trainA', data.images['A'])
            if data.val_cases:
                val_images = [case.image for case in data.val_cases]
                self.soft_masks['val'] = teacher.masks('valA', val_images)
            if is_main:
                teacher.keep_copies(folder)
        self.validation = Validation(config, self.device, data.images, data.val_cases,
                                     self.soft_masks)
        if not data.val_cases and self.stage.is_scored_without_labels:
            self.validation.prepare_label_free_score(teacher)
        if teacher:
            for warning in self.validation.teacher_warnings():
                print(warning)
        if config.method == 'student' and config.pseudo_label_rule == 'auto':
            self.config = self.stage.config = self.validation.with_pseudo_label_rule()

    def _open_log(self) -> TrainingLog:
        return TrainingLog(self.config.result_folder, self.config.stage, self.iteration,
                           self.stage.loss_names, tuple(METRICS),
                           writes=distributed.is_main_process())

    @contextmanager
    def _batches(self, data: Data) -> Iterator[tqdm]:
        """The batches of the iterations to come, under a progress bar."""
        config = self.config
        batches = dataset.training_batches(
            data.images, config, self.iteration, data.store, self.soft_masks['train'],
            self.stage.augment_sample, self.stage.shards_batches)
        bar = tqdm(batches, 'training', config.iteration, initial=self.iteration, unit='it',
                   smoothing=0.05, mininterval=progress_interval())
        try:
            yield bar
        finally:
            bar.close()
            batches.close()

    # ------------------------------------------------------------------------- of one iteration

    def _set_learning_rate(self) -> None:
        """Constant; with --decay_flag as the stage's schedule has it."""
        config, rate = self.config, self.config.lr
        if config.decay_flag:
            rate *= self.stage.schedule(self.iteration / config.iteration)
        for optimizer in self.stage.optimizers.values():
            for group in optimizer.param_groups:
                group['lr'] = rate * group['lr_scale']

    def _step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One iteration: the weighted losses by name, `mask_share` and `skipped`, means over the
        processes."""
        batch = {name: part.to(self.device, non_blocking=True) for name, part in batch.items()}
        result = self.stage.step(batch, self.iteration)
        returned, declared = result.losses, self.stage.loss_names
        if set(returned) != set(declared):
            raise TypeError(f'{type(self.stage).__name__}.step returned the losses '
                            f'{", ".join(returned)}, but declares {", ".join(declared)}')
        values = {**returned, 'mask_share': result.mask_share, 'skipped': result.skipped,
                  'stop': torch.full_like(result.skipped, signals.stop_requested())}
        numbers = distributed.all_reduce_mean(torch.stack(list(values.values()))).tolist()
        values = dict(zip(values, numbers, strict=True))
        self.stop_requested = values.pop('stop') > 0
        self.iteration += 1
        return values

    def _report(self, log: TrainingLog, bar: tqdm, values: dict[str, float]) -> None:
        """Losses to the log and the bar, and what is wrong to the user."""
        log.add_losses(self.iteration, values)
        losses = {name: values[name] for name in self.stage.loss_names}
        if message := self.guard.watch(losses, values['skipped'], self.iteration):
            tqdm.write(message)
        if message := self.time_left.tick():
            tqdm.write(message)
        if self.stage.watches_masks and (message := self.collapse.watch(values['mask_share'])):
            tqdm.write(f'iteration {self.iteration}: {message}')
        shown = {name: f'{values[name]:.4g}' for name in self.stage.progress_names}
        if (rate := bar.format_dict['rate']) is not None:
            shown['images/s'] = f'{rate * sum(self.config.batch_counts.values()):.1f}'
        if self.collapse.state:
            shown['masks'] = self.collapse.state.upper()
        bar.set_postfix(shown, refresh=False)

    def _grid_due(self) -> bool:
        config, iteration = self.config, self.iteration
        is_due = iteration == config.iteration or iteration % config.print_freq == 0
        return is_due and distributed.is_main_process()

    def _validation_due(self) -> bool:
        # after a skipped step weights may be bad already; wait for a good one
        return self.iteration == self.config.iteration or (
            self.iteration % self.config.save_freq == 0 and not self.guard.in_a_row)

    @torch.no_grad()
    def _image_grid(self, data: Data) -> dict[str, dict[str, np.ndarray]]:
        """The image grid's columns by title: some of trainA and val, which may share names."""
        self.stage.networks.eval()
        shown = {'train': data.images['A'], 'val': [case.image for case in data.val_cases]}
        columns = {}
        for split, paths in shown.items():
            batches = dataset.image_batches(paths[:GRID_IMAGES], self.config, 1,
                                            self.soft_masks[split])
            for path, batch in zip(paths, batches, strict=False):
                inputs = [batch[key].to(self.device) for key in ('image', 'mask') if key in batch]
                columns[f'{split}\n{path.name}'] = self.stage.visuals(*inputs)
        return columns

    # ------------------------------------------------------------------- validation and saving

    def _validate_and_save(self, log: TrainingLog) -> None:
        improved, began = False, time.monotonic()
        if score := self.validation.score(self.stage):
            self.time_left.scored(time.monotonic() - began)
            if score.metrics:
                log.add_val(self.iteration, score.metrics)
                if improved := self.best_ja is None or score.value > self.best_ja:
                    self.best_ja = score.value
            else:
                log.add_score(self.iteration, score.value)
                if improved := self.best_score is None or score.value > self.best_score:
                    self.best_score = score.value
            tqdm.write(f'iteration {self.iteration}: {score.text}' + ' (best so far)' * improved
                       + f'; {self.time_left.text}' * bool(self.time_left.text))
        self._save(log, improved)

    def _save(self, log: TrainingLog, is_best: bool = False) -> None:
        """Write the checkpoint of this iteration, and delete what --keep_checkpoints no longer
        holds, unless this one may be bad."""
        config, folder = self.config, self.config.run_folder
        for name, network in self.stage.networks.items():
            if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
                raise NonFiniteError(f'{name} holds numbers that are not finite at iteration '
                                     f'{self.iteration}, so it was not saved')
        log.flush()
        path = folder / checkpoints.file_name(config.dataset, self.iteration)
        progress = {'mask_share': self.collapse.mask_share, 'skipped': self.guard.count,
                    'is_best': is_best, 'stage': self.stage.state()}
        if distributed.is_main_process():
            checkpoints.save(path, self.stage.networks, config, self.iteration, self.best_ja,
                             self.best_score, self.stage.optimizers, progress)
            if is_best:
                checkpoints.mark_best(path)
            if not self.guard.in_a_row:
                checkpoints.prune(folder, config.dataset, config.keep_checkpoints)
        self.last_saved = path

    # ------------------------------------------------------------------------- scoring and test

    def val(self, sources: list[Source]) -> None:
        """Score checkpoints on val by every rule of post-processing, mark the best of a run as
        best.pt and write val.json. Each source comes with the Config its network runs by."""
        config = self.config
        problems = dataset.Problems()
        cases = dataset.checked_val_cases(config, problems)
        problems.settle(config.skip_bad)
        if not cases:
            raise UserError(f'{config.data_folder / "val"}: no labels to choose by; needed are '
                            'val/images/ and val/labels/')
        folder = sources[0][0].path.parent
        if len({of_source.stage for _, of_source in sources}) > 1:
            raise UserError(f'--checkpoint: {folder} holds files of both stages; give those of one')
        if config.postprocess == 'none':
            raise UserError('--postprocess none: soft masks alone cannot be scored; leave it out')
        paths, masks = [case.image for case in cases], []
        for source, of_source in sources:
            teacher = of_source.takes_conditioning and find_teacher(of_source, self.device, folder)
            conditioning = teacher.masks('valA', paths) if teacher else None
            masks.append(val_masks(source, of_source, paths, conditioning, self.device))
        rows = model_selection.score(cases, sources, masks)
        print(f'{len(cases)} labeled val images; of {len(rows)} rows the best of each checkpoint:\n'
              + model_selection.table(rows))
        if distributed.is_main_process():
            self._write_choice(folder, cases, sources, masks, rows)

    def _write_choice(self, folder: Path, cases: list[dataset.Case], sources: list[Source],
                      masks: list[list[np.ndarray]], rows: list[dict[str, Any]]) -> None:
        """val.json, report.html and, of a run, best.pt; `rows` best first, of files in `folder`."""
        config, best = self.config, rows[0]
        target = make_folder(model_selection.choice_folder(config, sources[0][0]))
        model_selection.write(target, len(cases), config, rows)
        if target == folder:  # elsewhere best.pt is a file of the user
            checkpoints.mark_best(folder / best['file'])
            if best['file'] != 'best.pt':
                print(f'{folder / "best.pt"} is {best["file"]}')
        rule = model_selection.rule_text(best)
        print(f'best: JA {best["JA"]:.1f} percent, the mean over {len(cases)} labeled val images, '
              f'with {rule}, which test and predict of it will use')
        print(f'all {len(rows)} rows are in {target / "val.json"}')
        best_masks = next(of_source for (source, _), of_source in zip(sources, masks, strict=True)
                          if checkpoints.fingerprint(source) == best['fingerprint'])
        facts = {'checkpoint': str(folder / best['file']), 'iteration': str(best['iteration']),
                 'postprocess': rule} | ({'length': QUICK_TEXT} if config.quick else {})
        write_val_report(
            target / 'report.html', config.dataset, facts, cases, best_masks, METRIC_INFO,
            segment=lambda mask, image: to_segmentation(mask, best['rule'], image,
                                                        best['crf_t'] or 1, config),
            compute_metrics=all_metrics, summarize=summarize)
        if config.quick:
            print(QUICK_TEXT)
        print(f'open {target / "report.html"}')

    def pseudo_mask(self) -> None:
        """The stage-1 soft masks of trainA, val and testA as folders syn_* of the result folder."""
        config = self.config
        teacher = PseudoLabeler(config, choose_teacher(config), self.device)
        print(f'stage-1 soft masks: {teacher.origin}')
        for split, name in SPLITS.items():
            folder = config.data_folder / name
            if folder.is_dir() or split == 'trainA':
                files = teacher.masks(split, dataset.list_images(folder))
                print(f'{len(files)} masks of {folder} are in {next(iter(files.values())).parent}')

    def test(self, source: checkpoints.Checkpoint) -> int:
        """Masks, images and metrics of testA; translations of testB where they can be had. Files
        that cannot be used are left out and listed; the exit code, 1 where there were any."""
        config = self.config
        problems = dataset.Problems()
        cases = dataset.check_cases(dataset.find_cases(config.data_folder, 'test', problems),
                                    problems)
        if not cases:
            problems.settle(skip=False)
        network = mask_network(source, config, self.device)
        rule, exponent = model_selection.chosen_rule(config, source)
        teacher = self._teacher_of_test(source)
        teacher_masks = teacher and teacher.masks('testA', [case.image for case in cases])
        results = ResultFolder(config.result_folder / f'test{config.stage}' / source.path.stem)
        outcomes = test_cases(network, cases, config, self.device, rule, exponent, results,
                              teacher_masks)
        if config.save_visuals:
            translate_normal(source, config, self.device, results, problems)
        distributed.barrier()
        if not distributed.is_main_process():
            return 1 if problems.reasons else 0
        used = {'dataset': config.dataset, 'stage': config.stage, 'checkpoint': str(source.path),
                'postprocess': rule, 'crf_t': exponent if rule == 'crf' else None,
                'clear_corners': config.clear_corners,
                'rule_origin': model_selection.origin_of_rule(config, source),
                'length': QUICK_TEXT if config.quick else None,
                'warnings': mask_warnings([outcome.small_mask for outcome in outcomes])}
        if teacher:
            used['teacher'] = teacher.origin
        if problems.reasons:
            used['left_out'] = [str(path) for path in problems.reasons]
        self._finish_test(results, cases, outcomes, used)
        return problems.report()

    def _teacher_of_test(self, source: checkpoints.Checkpoint) -> PseudoLabeler | None:
        """The teacher of a stage-2 network; a student needs none, but its masks are shown beside
        the student's."""
        config = self.config
        if config.stage < 2 or not (config.takes_conditioning or config.save_visuals):
            return None
        return find_teacher(config, self.device, source.path.parent,
                            required=config.takes_conditioning)

    def _finish_test(self, results: ResultFolder, cases: list[dataset.Case],
                     outcomes: list[CaseResult], used: dict[str, Any]) -> None:
        """Metrics, overview and report, and what came of it in words."""
        rows = [outcome.metrics for outcome in outcomes if outcome.metrics]
        results.write_overview(cases, rows)
        results.write_metrics(used, rows, summary := summarize(rows), METRIC_INFO)
        if self.config.save_visuals:
            results.write_report(used, cases, rows, METRIC_INFO, summarize)
        results.finish()
        rule = model_selection.rule_text({'rule': used['postprocess'], 'crf_t': used['crf_t']})
        print(f'post-processing: {rule} ({used["rule_origin"]})')
        if rows:
            print(table(summary, len(rows), len(cases)))
        else:
            print('no segmentations, so no metrics' if used['postprocess'] == 'none'
                  else 'no labels: masks only, no metrics')
        if blank := sum(outcome.is_blank for outcome in outcomes):
            print(f'{blank} of {len(cases)} segmentations are empty or cover over 90 % of the '
                  'image')
        print(*used['warnings'], *filter(None, [used['length']]),
              f'results are in {results.final}', sep='\n')
        if self.config.save_visuals:
            print(f'open {results.final / "report.html"}')
