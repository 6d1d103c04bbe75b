"""Which runs one command line stands for, and carrying them out one after the other."""
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from config import ARCHITECTURE, OPTIONS, SAVED, Config, method_of, resolve
from runtime import signals
from runtime.files import TEXT
from runtime.lock import locked
from runtime.runs import (
    METHOD_TEXTS,
    QUICK_TEXT,
    STAGES,
    checkpoints_of,
    iterations_left,
    last_trained,
    numbered,
    stage_text,
)
from runtime.staging import remove_leftovers
from runtime.time_left import Later, duration_text
from utils import UserError, pick_device, printable

if TYPE_CHECKING:  # torch takes seconds to import, and bad flags should be answered before
    from checkpoint import Checkpoint
    from trainer import Trainer

Flags = dict[str, Any]
TORCH_FLOOR = (2, 10)  # below, loading a file can run code or corrupt memory
# with several stages in one command these flags are of one of them, stage 1 or else the student,
# and the localizer before keeps its presets
OF_ONE_STAGE = ('ch', 'n_res', 'n_dis', 'light', 'img_size', 'iteration', 'batch_size', 'lr',
                'weight_decay', 'decay_flag', 'augment', 'checkpoint')
WITHOUT_STAGE_1 = ('stage 1 (label transfer) is left out: it takes longest, and no gain is shown '
                   'yet (docs/ablations.md); to have it: --stage 1, then --stage 2')
SCORINGS_BEFORE, SCORINGS_OF_VAL = 2, 2  # 1.7 and 2.3 as measured on the built-in data
# flags of training that the val at its end needs as well
OF_VAL = ('dataset', 'data_root', 'result_dir', 'device', 'amp', 'num_workers', 'compile',
          'skip_bad')


class Stopped(Exception):
    """Training ended early, which was said; `code` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Run(NamedTuple):
    """One phase of one stage."""

    flags: Flags
    is_final_val: bool = False  # the val after all stages: of the best checkpoint alone


# ------------------------------------------------------------------------------------- planning


def plan(flags: Flags) -> list[Run]:
    """The runs that a command line stands for.

    Training without --stage or --checkpoint goes through the stages of the recipe and lets val
    choose: ours localizer and student, published label transfer twice. Stage 1 makes sure that
    there is the localizer it needs."""
    phase, stage = flags.get('phase', 'train'), flags.get('stage')
    all_stages = stage is None and not flags.get('checkpoint')
    if phase in ('val', 'test', 'predict', 'export') and all_stages:
        stage = last_trained(resolve(flags))  # None: that of a file in model/
        return [Run(flags if stage is None else flags | {'stage': stage})]
    if phase != 'train' or stage in (0, 2):
        return [Run(flags)]
    if all_stages and 'teacher' in flags:
        raise UserError('--teacher: of one stage; say which with --stage')
    others = {name: value for name, value in flags.items() if name not in OF_ONE_STAGE}
    localizer = others | {'stage': 0}
    config = resolve(flags | {'stage': 1})
    if not all_stages:
        runs = [Run(flags | {'stage': 1})]
        is_resumed = config.resume and checkpoints_of(config)
        if config.localization_weight and not config.teacher and not is_resumed:
            if checkpoints_of(resolve(localizer)):
                localizer['resume'] = True  # one that is there is kept, and one begun is finished
                localizer.pop('quick', None)
            runs.insert(0, Run(localizer))
        return runs
    if config.recipe == 'ours':
        teacher = str(resolve(localizer).run_folder)
        runs = [Run(localizer), Run(flags | {'stage': 2, 'teacher': teacher})]
    else:
        runs = [Run(flags | {'stage': 1})]
        if config.generation == 'first':
            runs.append(Run(others | {'stage': 2}))
    val = {name: flags[name] for name in OF_VAL if name in flags}
    val |= {'phase': 'val', 'stage': runs[-1].flags['stage']}
    return [*runs, Run(val, is_final_val=True)]


def ignored_flags(flags: Flags) -> str:
    """A line that names the flags without effect, those of other phases or stages; '' if none."""
    phase = flags.get('phase', 'train')
    stages = {run.flags.get('stage') for run in plan(flags) if not run.is_final_val}
    # the recipe of a resumed run is that of its checkpoint
    recipes = [flags.get('recipe', 'ours')] if 'recipe' in flags or not flags.get('resume') else (
        'ours', 'published')
    methods = {method_of(recipe, stage) for recipe in recipes for stage in stages - {None}}
    ignored = []
    for name in flags:
        phases, own = OPTIONS[name].metadata['phases'], OPTIONS[name].metadata['methods']
        if phase not in phases and name != 'dry_run':  # which is an error there
            ignored.append(f'--{name} (of --phase {", ".join(phases)})')
        elif phase == 'train' and own and not methods & {*own}:
            own_stages = [str(stage) for stage in STAGES if method_of('ours', stage) in own]
            ignored.append(f'--{name} (of stage {" and ".join(own_stages)})')
    return f'ignored here: {", ".join(ignored)}' if ignored else ''


# ---------------------------------------------------------------------------------- checkpoints


def choose_checkpoints(config: Config) -> list[Path]:
    """The files that a run reads; none for a training from the beginning."""
    import checkpoint as checkpoints
    files = [Path(path) for path in config.checkpoint]
    if config.phase == 'val':
        files = checkpoints_to_compare(config, files)
    elif len(files) > 1:
        raise UserError(f'--checkpoint: --phase {config.phase} takes one file')
    if config.phase == 'pseudo_mask':
        return []
    if config.phase != 'train':
        return files or [checkpoints.choose_for_test(config.result_folder, config.dataset,
                                                     config.stage)]
    if not config.resume:
        return files
    if files:
        raise UserError(
            '--checkpoint starts a new run and --resume goes on with one: give one of the two')
    numbered = checkpoints_of(config)
    if not numbered:
        print(f'nothing to resume in {config.run_folder}: starting at iteration 0')
    return numbered[-1:]


def checkpoints_to_compare(config: Config, files: list[Path]) -> list[Path]:
    """The files that val scores, if there are any: those given, else all of the run; its best.pt
    competes, so that it gives way only to a better one."""
    files = [path for path in files if path.name not in ('teacher.pt', 'localizer.pt')]
    if len({path.parent.resolve() for path in files}) > 1:
        raise UserError('--checkpoint: val.json and best.pt are written beside the files, so '
                        'give files of one folder')
    files = files or checkpoints_of(config)
    best = (files[0].parent if files else config.run_folder) / 'best.pt'
    is_of_run = best.parent.parent.resolve() == config.result_folder.resolve()
    if is_of_run and best.is_file() and best not in files:
        files.append(best)
    return files


def read_checkpoints(flags: Flags) -> tuple[Config, list[tuple['Checkpoint', Config]]]:
    """The Config of a run, and the checkpoints it reads, each with the Config of its network."""
    import checkpoint as checkpoints
    config = resolve(flags)
    sources = []
    for path in choose_checkpoints(config):
        try:
            source = checkpoints.read(path)
        except UserError as error:
            others = config.resume and len(checkpoints_of(config)) > 1
            hint = '; remove it to resume from the one before' if others else ''
            raise UserError(f'{error}{hint}') from None
        print(f'checkpoint: {path} (iteration {source.iteration})')
        saved = source.config
        if config.phase == 'train' and not config.resume:  # only the networks are taken over
            kept = (*ARCHITECTURE, 'recipe') if config.stage == 2 else ARCHITECTURE
            saved = {name: saved[name] for name in kept if name in saved}
        sources.append((source, resolve(flags, saved, str(path))))
        if config.phase == 'train' and config.resume:
            say_what_changed(*sources[0])
    if config.phase == 'val':  # best.pt mostly is one of the numbered files
        sources = list({checkpoints.fingerprint(source): (source, of_source)
                        for source, of_source in reversed(sources)}.values())[::-1]
    if sources:
        config = sources[0][1]
    elif config.phase == 'train' and config.stage == 2:
        config = resolve(flags, inherited=inherited_options(config))
    return config, sources


def say_what_changed(source: 'Checkpoint', config: Config) -> None:
    """Print which settings and which training images are no longer those of a run that is to be
    resumed; raises UserError for another data set, which holds less than half of its images."""
    import checkpoint as checkpoints
    import dataset
    now = config.saved_values()
    before = {name: tuple(value) if isinstance(value, list) else value
              for name, value in source.config.items()}
    changed = [f'{name} {now[name]} (was {before[name]})' for name in SAVED
               if name in before and before[name] != now[name]]
    if changed:
        print(f'changed settings: {", ".join(changed)}')
    try:
        trained_on = dict(json.loads(checkpoints.data_record(config).read_text(**TEXT)))
    except (OSError, ValueError, TypeError):
        return  # a run of an earlier version
    images = dataset.training_contents(config.data_folder)
    kept = sum(images.get(name) == content for name, content in trained_on.items())
    if 2 * kept < len(trained_on):
        raise UserError(f'{config.data_folder}: another data set: of the {len(trained_on)} '
                        f'training images of {source.path} it holds {kept}; resume with the '
                        f'--data_root of those, or start anew: --stage {config.stage} without '
                        '--resume')
    lost = len(trained_on) - kept
    if lost or len(images) > kept:
        print(f'changed data set: of the {len(trained_on)} training images {lost} are gone or '
              f'hold something else, and {len(images) - kept} are new')


def inherited_options(config: Config, of_teacher: Flags | None = None) -> Flags:
    """What a new run of stage 2 takes over from its teacher unless flags say otherwise: a student
    the channels of images; published stage 2, which is stage 1 again, all. `of_teacher` are the
    teacher's options; without them they are read from its checkpoint."""
    import checkpoint as checkpoints
    from stages.pseudo_labels import choose_teacher
    if of_teacher is None:
        teacher = choose_teacher(config)
        of_teacher = checkpoints.read(teacher).config if teacher else {}
    names = ('img_ch',) if config.method == 'student' else SAVED
    return {name: of_teacher[name] for name in names if name in of_teacher}


# -------------------------------------------------------------------------------- carrying out


def run(flags: Flags) -> int:
    """Train, val, test or pseudo_mask: every run of the plan, in order. The exit code."""
    runs = plan(flags)
    for part in runs:
        resolve(part.flags)  # bad flags are said before slow imports
    check_torch()
    import dataset
    from runtime import distributed
    from trainer import Trainer
    first = resolve(runs[0].flags)
    device = distributed.init(first.device)
    pick_device(device)
    prepare_data_folder(first)
    with ExitStack() as locks:
        if distributed.is_main_process() and not first.dry_run:
            for part in runs:  # all of them first, so that none is refused after others were done
                if first.phase == 'train' and not part.is_final_val:
                    locks.enter_context(locked(resolve(part.flags).run_folder))
        configs = say_what_comes(runs, device)
        if first.dry_run:
            dry_run(configs)
            return 0
        code, later = 0, what_is_later(configs, runs[-1].is_final_val)
        for part in runs:
            part_flags = part.flags | {'device': device}
            if part.is_final_val:
                if not dataset.validation_cases(first.data_folder, dataset.Problems()):
                    continue
                part_flags['checkpoint'] = [str(resolve(part.flags).run_folder / 'best.pt')]
            if len(runs) > 1:
                what = ': what val chooses' if part.is_final_val else ''
                print(f'--- stage {part.flags["stage"]}{what}', flush=True)
            config, sources = read_checkpoints(part_flags)
            if first.phase in ('val', 'test'):
                print(stage_and_why(flags, config))
            if first.phase in ('val', 'test') and distributed.is_main_process():
                folder = folder_of_results(config, sources[0][0])
                locks.enter_context(locked(folder))
                locks.callback(remove_leftovers, folder / sources[0][0].path.stem)
            trainer = Trainer(config, later.get(config.stage))
            try:
                if config.phase == 'train':
                    with saying_how_to_resume(trainer):
                        trainer.train(sources[0][0] if sources else None)
                elif config.phase == 'val':
                    trainer.val(sources)
                elif config.phase == 'test':
                    code = trainer.test(sources[0][0])
                else:
                    trainer.pseudo_mask()
            except Stopped as stopped:
                code = stopped.code
            del trainer, sources  # networks have to be gone before processes part
            if code or signals.stop_reason:
                break
        if first.phase == 'train' and not code and not signals.stop_reason:
            say_what_follows(flags, first, runs)
        distributed.shutdown()
    return code


def folder_of_results(config: Config, source: 'Checkpoint') -> Path:
    """The folder that val or test writes into."""
    from inference.model_selection import choice_folder
    if config.phase == 'test':
        return config.result_folder / f'test{config.stage}'
    return choice_folder(config, source)


def use_network(flags: Flags) -> int:
    """predict and export, which need a checkpoint and no data set. The exit code."""
    flags_given, flags = flags, plan(flags)[0].flags
    config = resolve(flags)
    check_torch()
    import predict
    from inference import export
    if not {'dataset', 'checkpoint'} & flags.keys():
        raise UserError(f'--dataset: --phase {config.phase} needs to know whose network to use; or '
                        'name one with --checkpoint FILE')
    check = predict.check_paths if config.phase == 'predict' else export.target_file
    check(config)  # before a network is read
    path = choose_checkpoints(config)[0]
    print(f'checkpoint: {path}')
    options = {name: value for name, value in flags.items() if name not in ('checkpoint', 'device')}
    predictor = predict.Predictor(path, config.device, **options)
    print(stage_and_why(flags_given, predictor.config))
    if predictor.config.quick:
        print(QUICK_TEXT)
    use = predict.run if config.phase == 'predict' else export.run
    return use(predictor.config, predictor)


def prepare(flags: Flags) -> int:
    """Make a data set of what was downloaded. The exit code."""
    from preparation import prepare as preparation
    return preparation.run(resolve(flags))


def evaluate(flags: Flags) -> int:
    """Compare masks with labels, without any network. The exit code."""
    import evaluate as evaluation
    return evaluation.run(resolve(flags))


def prepare_data_folder(config: Config) -> None:
    """Raises UserError where the data set is missing; the built-in one is drawn on first use."""
    import dataset
    from preparation import phantom
    from runtime import distributed
    if config.dataset != 'phantom':
        dataset.check_data_folder(config.data_folder)
    elif distributed.is_main_process() and not config.data_folder.exists():
        with locked(config.data_folder, '--data_root', wait=True):
            if not config.data_folder.exists():  # another run may have drawn it meanwhile
                phantom.write_phantom(config.data_folder)
    distributed.barrier()


def training_configs(runs: list[Run]) -> list[Config]:
    """The Config of each training of the plan, as far as it is known before the first one ran."""
    import checkpoint as checkpoints
    configs = []
    for part in runs:
        config = resolve(part.flags)
        if config.phase != 'train':
            continue
        if found := config.resume and checkpoints_of(config):
            with suppress(UserError):  # said when its turn comes
                saved = checkpoints.read(found[-1]).config
                config = resolve(part.flags, saved, str(found[-1]))
        elif config.stage == 2 and (configs or config.dry_run):
            of_teacher = configs[-1].saved_values() if configs else None
            config = resolve(part.flags, inherited=inherited_options(config, of_teacher))
        configs.append(config)
    return configs


def dry_run(configs: list[Config]) -> None:
    """Print what a training would do; raises UserError where it could not be done."""
    from trainer import Trainer
    seconds = [Trainer(config).dry_run(config is configs[0])  # other teachers are yet to be trained
               for config in configs]
    if len(seconds) > 1 and None not in seconds:
        print(f'{duration_text(sum(seconds))} over all stages, without scoring on val')
    print('dry run: nothing was written')


def what_is_later(configs: list[Config], has_val: bool) -> dict[int, Later]:
    """By stage, about how long those after it train; {} where there is only one. Making a teacher's
    masks and choosing a rule count as SCORINGS_BEFORE, the val at the end as SCORINGS_OF_VAL."""
    from trainer import Trainer
    if len(configs) < 2:
        return {}
    later, seconds, scorings = {}, 0.0, SCORINGS_OF_VAL * has_val
    for config in reversed(configs):
        later[config.stage] = Later(seconds, scorings)
        left = iterations_left(config)
        scorings += -(-left // config.save_freq) + SCORINGS_BEFORE * (left > 0)
        if config is not configs[0] and iterations_left(configs[0]):
            seconds += Trainer(config).seconds_to_train(left) or 0
    return later


# --------------------------------------------------------------------------------- what is said


def say_what_comes(runs: list[Run], device: str) -> list[Config]:
    """Print the device, and which stages a training goes through, and why these; the Configs of
    `training_configs`."""
    from runtime.preflight import device_text
    print(f'device: {device_text(pick_device(device))}')
    configs = training_configs(runs)
    if len(configs) < 2:
        return configs
    stages = [config.stage for config in configs]
    if stages == [0, 1]:
        kept = '' if iterations_left(configs[0]) else ' (it is there already, and kept)'
        print(f'stage 1 learns from the localization maps of stage 0, so that comes first{kept}; '
              '--localization_weight 0 trains without it')
    elif stages == [0, 2]:
        print(WITHOUT_STAGE_1)
    what = [stage_text(config) for config in configs]
    if runs[-1].is_final_val:
        what.append('val, which chooses checkpoint and post-processing, if there are labels')
    print(f'to come: {"; ".join(what)}')
    if configs[-1].quick:
        print('--quick: a tenth of the usual length, to see whether all goes well; results are '
              'marked')
    return configs


def stage_and_why(flags: Flags, config: Config) -> str:
    """The stage of the network that a command uses, and why this one, to print."""
    if flags.get('checkpoint'):
        why = 'that of the file given'
    elif 'stage' in flags:
        why = 'as --stage says'
    elif last_trained(config) is None:
        why = f'that of the file in model/, since {config.result_folder} holds no run'
    else:
        others = [str(stage) for stage in STAGES if stage != config.stage
                  and checkpoints_of(replace(config, stage=stage))]
        why = 'the stage trained last' + (
            f'; --stage {" or ".join(others)} uses another' if others else '')
    return f'stage {config.stage} ({METHOD_TEXTS[config.method]}): {why}'


def say_what_follows(flags: Flags, first: Config, runs: list[Run]) -> None:
    """Print after a training which later stages are now stale, and how to test."""
    import checkpoint as checkpoints
    trained = [part.flags['stage'] for part in runs if not part.is_final_val]
    for stage in STAGES:
        folder = first.result_folder / f'model{stage}'
        for name in ('teacher.pt', 'localizer.pt') if numbered(folder, first.dataset) else ():
            if not (folder / name).is_file():
                continue
            teacher = checkpoints.read(folder / name)
            of_stage = teacher.config.get('stage', 1)
            now = checkpoints.best_of_run(first.result_folder / f'model{of_stage}', first.dataset)
            if of_stage in trained and now and checkpoints.fingerprint(
                    checkpoints.read(now)) != checkpoints.fingerprint(teacher):
                print(f'stage {stage} is stale: the networks in {folder} learned from another '
                      f'stage {of_stage} than {now} is now; to train it again: --phase train '
                      f'--stage {stage}')
                break
    again = [f'--{name} {shlex.quote(str(flags[name]))}'
             for name in ('dataset', 'data_root', 'result_dir') if name in flags]
    print('next: ' + ' '.join(['python main.py --phase test', *again]))


@contextmanager
def saying_how_to_resume(trainer: 'Trainer') -> Iterator[None]:
    """When training ends early, say why and what is kept; raises Stopped where it failed."""
    from stages.optim import NonFiniteError

    def say(reason: str) -> None:
        kept = (f'{trainer.last_saved} is kept, and --resume True goes on from it'
                if trainer.last_saved else 'no checkpoint had been written yet')
        print(printable(f'{reason}; {kept}'), file=sys.stderr)

    try:
        yield
    except KeyboardInterrupt as signal:
        say(f'{str(signal) or "interrupted"}: left at once')
        raise Stopped(130) from None
    except (NonFiniteError, OSError, UserError) as problem:
        if isinstance(problem, UserError) and not trainer.iteration:  # then it is bad input
            raise
        say(f'stopped: {problem}')
        raise Stopped(1) from None
    if trainer.stop_requested:
        say(f'{signals.stop_reason or "stopped"}: iteration {trainer.iteration} is done')


def check_torch() -> None:
    """Raises UserError for a torch that is not safe to load files with."""
    from importlib import metadata
    version = metadata.version('torch')
    if tuple(int(part) for part in version.split('.')[:2]) < TORCH_FLOOR:
        raise UserError(f'torch {version}: has known holes in loading files; pip install --upgrade '
                        f'"torch>={".".join(map(str, TORCH_FLOOR))}" "torchvision>=0.25"')
