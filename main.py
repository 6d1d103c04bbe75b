"""Label transfer: lesion masks from disease / normal image labels. The command line.

    python main.py --dataset ISIC --phase train
    python main.py --dataset ISIC --phase test
"""
import argparse
import difflib
import errno
import os
import re
import sys
import time
from pathlib import Path

import interruption
import settings as presets
from utils import UserError, make_folder


def boolean(text: str) -> bool:
    values = {'true': True, 'false': False, '1': True, '0': False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f'{text!r} is neither True nor False')
    return values[text.lower()]


# Flags by purpose: name, type (or choices), help. The default is added to each help text.
FLAGS = {
    'what to do': [
        ('phase', ('prepare', 'train', 'val', 'test', 'predict', 'export', 'pseudo_mask'),
         'prepare: make a data set of what was downloaded; train networks; val: choose checkpoint '
         'and post-processing on labelled val pictures; test: make masks and figures of testA; '
         'predict: make masks of any pictures or volumes; export: write the network as ONNX; '
         'pseudo_mask: write the stage-1 masks of trainA, val and testA'),
        ('recipe', ('ours', 'published'), 'ours: with all that was found to help; published: the '
                                          'settings of the published code'),
        ('stage', (0, 1, 2),
         '0: locate what makes pictures diseased; 1: label transfer between disease and normal '
         'pictures; 2: better masks from those of stage 1'),
        ('scheme', ('student', 'published'),
         'stage 2: a student that learns from a teacher, or, as published, generators that see '
         'the stage-1 mask'),
        ('student', ('unet', 'locator'), 'what that student is: a new U-Net, or the locator of stage 0, '
                                         'which goes on learning at its own size'),
        ('dataset', str, 'name of the data set, a folder in --data_root; "phantom" is built in '
                         'and made on first use'),
        ('preset', ('own', 'ISIC'), 'whose defaults to take: those for the name in --dataset, or ISIC: those '
                                    'for dermoscopy'),
        ('data_root', str, 'folder that holds the data sets'),
        ('result_dir', str, 'folder for checkpoints, masks and figures, from the current one'),
        ('checkpoint', str, "a checkpoint file of ours or of the authors: what to test, or the "
                            "networks to start training from (test's own choice: best.pt of the "
                            'run, else its newest, else for stage 1 the newest of model/); for '
                            'val several, of one folder (its own choice: all of the run)'),
        ('teacher', str, "stage 1: the stage-0 checkpoint that locates; stage 2: the checkpoint of "
                         'stage 1 (or 0) whose masks it starts from (its own choice: for stage 2 '
                         'syn_* folders of the data set; else the best of the stage before)'),
        ('resume', boolean, 'train: go on from the newest checkpoint of the run'),
        ('dry_run', boolean, 'train: check data, networks, memory, disk and permissions, say what '
                             'would be done, and stop'),
        ('skip_bad', boolean, 'train, val: go on without files that cannot be used, and say which'),
    ],
    'prepare': [
        ('source', list, 'folder of what was downloaded; for folders one of disease and one of '
                         'normal pictures'),
        ('source_format', ('brats', 'isic', 'folders'),
         'brats: a tree of NIfTI volumes with segmentations; isic: pictures ISIC_*.jpg with '
         'ISIC_*_segmentation.png; folders: pictures'),
        ('modality', ('flair', 't1', 't1ce', 't2'), 'brats: which volumes'),
        ('z_range', str, 'brats: axial slices from-to, as 90-120; all: those with enough head'),
        ('lesion_px', int, 'brats: least lesion of a disease slice, px of the prepared picture'),
        ('split', list, 'disease pictures of train, val and test, three counts or three fractions '
                        '(its own choice: brats 563 90 90, isic 200 31 31, folders 0.7 0.15 0.15)'),
        ('overwrite', boolean, 'prepare: replace a data set that it made before; predict: replace '
                               'masks of the same names'),
    ],
    'predict and export': [
        ('input', str, 'a picture, a folder of pictures and volumes (with those below it), or a '
                       'NIfTI volume'),
        ('output', str, 'where the results go: a folder, or for one picture or volume a file; '
                        'export: the ONNX file (its own choice: <dataset>.onnx among the results)'),
        ('presence', float, 'predict: a picture whose soft mask nowhere reaches this, 0 to 1, holds no '
                            'lesion'),
        ('probability', boolean, 'predict: write soft masks too'),
    ],
    'networks': [
        ('generation', ('first', 'second'), 'which published network'),
        ('light', boolean, 'small head for γ and β; False fixes the picture size'),
        ('ch', int, 'channels of the first convolution'),
        ('n_res', int, 'residual blocks'),
        ('n_dis', int, 'discriminator depth: n_dis+1 layers global, n_dis-1 local'),
        ('img_size', int, 'height and width of pictures in the network, px: a multiple of 4; '
                          'to train, at least 96 with n_dis 6; a student, 32'),
        ('img_ch', int, 'channels of a picture: 3 colour, 1 grey'),
    ],
    'training': [
        ('iteration', int, 'iterations in all'),
        ('batch_size', int, 'pictures of each domain in an iteration; in test, pictures at a time'),
        ('lr', float, 'learning rate of Adam'),
        ('weight_decay', float, 'weight decay of Adam'),
        ('decay_flag', boolean, 'let the learning rate fall linearly to 0 over the second half'),
        ('augment', boolean, 'flips, random crops and contrast jitter'),
        ('seed', int, 'seed of initial weights, sampling and augmentation'),
    ],
    'weights of the losses': [
        ('adv_weight', float, 'adversarial, in the generators'),
        ('dis_weight', float, "the discriminators' own loss"),
        ('cycle_weight', float, 'A to B to A is A again'),
        ('identity_weight', float, 'a picture of the target domain stays as it is'),
        ('cam_weight', float, 'class attention'),
        ('recon_weight', float, 'reconstruction'),
        ('location_weight', float, "stage 1: masks of disease pictures are as the locator of stage "
                                   '0 says; 0: no stage 0'),
        ('normal_mask_weight', float, 'stage 1: masks of normal pictures are empty'),
    ],
    'targets of stages 1 and 2': [
        ('component', ('central', 'large', 'all'),
         'components that stay in a target: the most central one, those of at least 0.3 of the '
         'largest, or all'),
        ('location_share', float, "stage 2: share of the locator's map in the masks that teach, the "
                                  'rest being stage 1\'s; 0: stage 1 alone, 1: the locator alone'),
        ('fit', boolean, "stage 2: move a target's outline to where the picture's colours change"),
        ('lean', float, 'where it comes to lie: a pixel is lesion while its colour is less than this '
                        "many times as far from the lesion's as from the surroundings'; above 1 for "
                        'labels drawn generously'),
        ('cut', boolean, 'with --fit: then a graph cut (GrabCut) looks for the outline; for lesions '
                         'of several shades'),
        ('margin', float, 'with --fit: then it is drawn as a smooth line so far outside, px of a '
                          'picture of 256; for labels drawn by hand; 0: not'),
    ],
    'augmentation of stages 0 and 2': [
        ('turn', float, 'pictures are turned by up to this many degrees to either side; 180: no '
                        'side is up'),
        ('fade', boolean, 'stages 0 and 2: let lesions differ more or less from their surroundings, where '
                          'some are pale'),
        ('blur', boolean, 'stage 0: blur pictures at random, where sharpness alone could tell the '
                          'two folders apart'),
    ],
    'student of stage 2': [
        ('normal_batch', int, 'normal pictures in an iteration, beside --batch_size of disease'),
        ('warm_up', int, 'iterations on the stage-1 masks before renewed targets'),
        ('ramp_up', int, 'iterations after the warm-up in which the share of renewed targets grows '
                         'to all'),
        ('renew_freq', int, 'iterations between two renewals of the targets; 0: never'),
        ('ema_decay', float, "decay of the student's moving average"),
        ('guard', float, 'a renewed target counts where its JA with the stage-1 mask is at least '
                         'this, 0 to 1; else the stage-1 mask stays'),
        ('confidence', float, 'pixels whose renewed mask m has |2m − 1| below this do not count'),
        ('ce_weight', float, 'cross entropy on disease pictures'),
        ('dice_weight', float, 'Dice loss on disease pictures'),
        ('normal_weight', float, 'cross entropy of an empty mask on normal pictures'),
    ],
    'post-processing': [
        ('postprocess', ('auto', 'threshold', 'otsu', 'watershed', 'crf', 'clean', 'fit',
                         'none'),
         'how a mask becomes a segmentation; auto: what val chose, else with --fit fit, else otsu; '
         'threshold: above one half; clean: otsu, opened, holes filled, and of its components those '
         'that --component says; fit: clean, its outline moved to where the picture changes; '
         'none: soft masks alone'),
        ('crf_t', float, "exponent t of the CRF's background score (1 − mask)^t; 0: what val "
                         'chose, else 1'),
        ('clear_corners', boolean, 'no lesion in the four corner triangles of legs 80/256'),
        ('flips', boolean, 'average masks over the picture and its mirror image, with --turn above 90 '
                           'over all four flips'),
    ],
    'output': [
        ('print_freq', int, 'iterations between two sheets of sample pictures'),
        ('save_freq', int, 'iterations between two checkpoints, each scored on val if it has '
                           'labels'),
        ('keep', int, 'newest checkpoints that stay; the best on val stays as well'),
        ('pictures', boolean, 'test: write translated/, overlay/, stage_1_mask/ and report.html too; '
                              'False runs only the layers of the mask'),
    ],
    'machine': [
        ('device', str, 'auto (cuda, else mps, else cpu), cpu, cuda, cuda:1 or mps'),
        ('amp', boolean, 'compute in bfloat16 where that is safe'),
        ('compile', boolean, 'compile the networks first (torch.compile): minutes, then faster '
                             'iterations; needs a C++ compiler'),
        ('num_workers', int, 'threads that read pictures ahead; 0: none'),
        ('cache_mb', int, 'decoded training pictures that stay in memory, MB a process; those '
                          'beyond are read anew each time'),
        ('benchmark_flag', boolean, 'let cuDNN time its algorithms and take the fastest'),
    ],
}


def default_text(name: str) -> str:
    """The default of a flag as help shows it, with the presets that differ from it."""
    fixed = {'dataset': 'phantom', 'generation': 'first', 'checkpoint': 'none', 'recipe': 'ours',
             'scheme': 'student', 'source': 'none', 'split': "the format's",
             'stage': 'to train, all one after the other; else the one trained last'}
    if name in fixed:
        return fixed[name]
    field = presets.Settings.__dataclass_fields__[name].default

    def value(generation='first', dataset='any', phase='train', scheme='published', recipe='ours'):
        return presets.preset(generation, dataset, phase, scheme, recipe).get(name, field)

    usual = value()
    others = {'second generation': value('second'), 'stage 0': value(scheme='locator'),
              'student': value(scheme='student'), 'published': value(recipe='published')}
    for dataset in ('ISIC', 'phantom'):
        for words, scheme in (('', 'published'), (', stage 0', 'locator'), (', student', 'student')):
            own = value(dataset=dataset, scheme=scheme)
            if own not in (value(scheme=scheme), value(dataset=dataset) if words else None):
                others[dataset + words] = value(dataset=dataset, scheme=scheme)
    if name == 'batch_size':
        others['test'] = value(phase='test')
    return '; '.join(['none' if usual == '' else str(usual),
                      *(f'{words} {other}' for words, other in others.items() if other != usual)])


class Parser(argparse.ArgumentParser):
    def error(self, message):
        wrong = re.match(r'unrecognized arguments: (--\w+)', message)
        alike = wrong and difflib.get_close_matches(wrong[1], self._option_string_actions)
        hint = f'did you mean {alike[0]}? ' if alike else ''
        raise UserError(f'{message}; {hint}python main.py --help lists the flags')


def build_parser() -> argparse.ArgumentParser:
    """A parser that returns only the flags that were given."""
    parser = Parser(
        prog='python main.py', argument_default=argparse.SUPPRESS, allow_abbrev=False,
        description='Lesion masks from disease / normal image labels. Without flags it trains '
                    'on the built-in data; python main.py --phase test makes the masks.',
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=100))
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, kind, text in flags:
            options = {'type': kind, 'metavar': name.upper().split('_')[-1]}
            if isinstance(kind, tuple):
                options = {'type': type(kind[0]), 'choices': kind}
            elif kind is boolean:
                options = {'type': boolean, 'nargs': '?', 'const': True, 'metavar': 'True|False'}
            elif name == 'checkpoint':
                options = {'nargs': '+', 'metavar': 'FILE'}
            elif kind is list:
                options = {'nargs': '+', 'metavar': name.upper()}
            group.add_argument(f'--{name}', help=f'{text} (default: {default_text(name)})',
                               **options)
    return parser


def choose_checkpoints(wanted: presets.Settings) -> list[Path]:
    """The files that the settings ask for; none for a run from the beginning."""
    import checkpoint as checkpoints

    given = [Path(path) for path in wanted.checkpoint]
    if wanted.phase == 'val':
        # of model2/*.pt
        given = [path for path in given if path.name not in ('teacher.pt', 'locator.pt')]
        if len({path.parent.resolve() for path in given}) > 1:
            raise UserError('--checkpoint: val.json and best.pt are written beside the files, so '
                            'give files of one folder')
        if not given:
            given = checkpoints.numbered(wanted.run_folder, wanted.dataset)
        # the best so far competes, so that it gives way only to a better one
        best = (given[0].parent if given else wanted.run_folder) / 'best.pt'
        if best.is_file() and best not in given:
            given.append(best)
        return given or [checkpoints.choose_for_test(wanted.result_folder, wanted.dataset,
                                                     wanted.stage)]
    if len(given) > 1:
        raise UserError(f'--checkpoint: --phase {wanted.phase} takes one file')
    if wanted.phase in ('test', 'predict', 'export'):
        return given or [checkpoints.choose_for_test(wanted.result_folder, wanted.dataset,
                                                     wanted.stage)]
    if not wanted.resume:
        return given
    if given:
        raise UserError('--checkpoint starts a new run and --resume goes on with one: give one of '
                        'the two')
    found = checkpoints.numbered(wanted.run_folder, wanted.dataset)
    if not found:
        print(f'nothing to resume in {wanted.run_folder}: starting at iteration 0')
    return found[-1:]


def inherited_settings(wanted: presets.Settings) -> dict:
    """What a new run of stage 2 takes over from its teacher unless flags say otherwise: the size
    of pictures; in the published scheme, which is stage 1 again, all. A student that goes on from the
    locator takes over what fits that one, or starts anew where there is none."""
    import checkpoint as checkpoints
    from masks import choose_teacher, locator_behind

    teacher = choose_teacher(wanted)
    source = checkpoints.read(teacher) if teacher else None
    names = SIZES if wanted.scheme == 'student' else presets.RUN_FIELDS
    anew = {}
    if (wanted.scheme, wanted.student) == ('student', 'locator'):
        if locator := source and locator_behind(source):
            source, names = checkpoints.read(locator), (*SIZES, 'ch')
        else:
            anew = {'student': 'unet', 'lr': presets.STUDENT_DEFAULTS['lr']}
    saved = source.settings if source else {}
    return anew | {name: saved[name] for name in names if name in saved}


SIZES = ('img_size', 'img_ch')


# with several stages in one command these flags are stage 1's, and the others keep their presets
OF_ONE_STAGE = ('ch', 'n_res', 'n_dis', 'light', 'img_size', 'iteration', 'batch_size', 'lr',
                'weight_decay', 'decay_flag', 'augment', 'checkpoint', 'scheme')


def plan(flags: dict) -> list[dict]:
    """The runs that a command stands for, as the flags of each.

    Training without --stage or --checkpoint goes through all stages and lets val choose; stage 1
    makes sure that there is the locator it needs.
    """
    phase, given = flags.get('phase', 'train'), flags.get('stage')
    if (phase in ('val', 'test', 'predict', 'export') and given is None
            and not flags.get('checkpoint')):
        return [flags | {'stage': last_trained(presets.resolve(flags))}]
    if phase != 'train' or given in (0, 2):
        return [flags]
    whole = given is None and not flags.get('checkpoint')
    if whole and 'teacher' in flags:
        raise UserError('--teacher: of one stage; say which with --stage')
    first = {name: value for name, value in flags.items() if name != 'scheme' or not whole}
    first['stage'] = 1
    others = {name: value for name, value in flags.items() if name not in OF_ONE_STAGE}
    wanted = presets.resolve(first)
    runs = [first]
    begun = wanted.resume and any(wanted.run_folder.glob(f'{wanted.dataset}_params_*.pt'))
    if wanted.location_weight and not wanted.teacher and not begun:
        locator = others | {'stage': 0}
        folder = presets.resolve(locator).run_folder
        if not whole and any(folder.glob(f'{wanted.dataset}_params_*.pt')):
            locator['resume'] = True  # one that is there is kept, and one begun is finished
        runs.insert(0, locator)
    if whole and (wanted.recipe, wanted.generation) != ('published', 'second'):
        scheme = {name: flags[name] for name in ('scheme',) if name in flags}
        runs.append(others | scheme | {'stage': 2})
    if whole:
        places = ('dataset', 'data_root', 'result_dir', 'device', 'amp', 'num_workers', 'compile',
                  'skip_bad')
        runs.append({name: flags[name] for name in places if name in flags}
                    | {'phase': 'val', 'stage': runs[-1]['stage'], 'only_best': True})
    return runs


def last_trained(wanted: presets.Settings) -> int:
    """The stage of the newest checkpoint in the result folder; 1 if there is none."""
    newest = {path.stat().st_mtime: stage for stage in (0, 1, 2)
              for path in (wanted.result_folder / f'model{stage}').glob(
                  f'{wanted.dataset}_params_*.pt')}
    return newest[max(newest)] if newest else 1


def run(flags: dict) -> int:
    """Do what the flags say; the exit code. Raises UserError for what the user can put right."""
    runs = plan(flags)
    only_best = [part.pop('only_best', False) for part in runs]
    settings = [presets.resolve(part) for part in runs]  # tells bad flags before slow imports
    wanted = settings[0]
    if wanted.phase == 'prepare':
        import prepare

        return prepare.run(wanted)
    if wanted.phase in ('predict', 'export'):
        return use_network(wanted, flags)
    import dataset
    import parallel
    import phantom

    device = parallel.start(wanted.device)
    if wanted.dataset != 'phantom':
        dataset.check_data_folder(wanted.data_folder)
    elif parallel.is_first() and not wanted.data_folder.exists():
        make_folder(wanted.data_folder.parent, '--data_root')
        phantom.write_phantom(wanted.data_folder)
    parallel.wait()
    if wanted.dry_run:
        dry_run(runs)
        return 0
    code = 0
    for part, only in zip(runs, only_best):
        if only:
            if not dataset.validation_cases(wanted.data_folder, dataset.Problems()):
                continue
            best = presets.resolve(part).run_folder / 'best.pt'
            part = part | {'checkpoint': [str(best)]}
        if len(runs) > 1:
            print(f'--- stage {part["stage"]}' + (': what val chooses' if only else ''), flush=True)
        code = run_one(part | {'device': device})
        if code or interruption.asked:
            break
    parallel.finish()
    return code


def use_network(wanted: presets.Settings, flags: dict) -> int:
    """predict and export, which need a checkpoint and no data set; the exit code."""
    import export
    import predict

    if not {'dataset', 'checkpoint'} & flags.keys():
        raise UserError(f'--dataset: --phase {wanted.phase} needs to know whose network to use; or name one '
                        'with --checkpoint FILE')
    if wanted.phase == 'predict':
        predict.check_places(wanted)  # before a network is read
    path = choose_checkpoints(wanted)[0]
    print(f'checkpoint: {path}')
    own = {name: value for name, value in flags.items() if name not in ('checkpoint', 'device')}
    segmenter = predict.Segmenter(path, wanted.device, **own)
    return {'predict': predict, 'export': export}[wanted.phase].run(segmenter.settings, segmenter)


def dry_run(runs: list[dict]) -> None:
    """Say what a command's training would do; raises UserError where it could not be done."""
    from trainer import Trainer

    before = {}  # by stage
    for flags in runs:
        wanted = presets.resolve(flags)
        if wanted.phase != 'train':
            continue
        if wanted.stage == 2:  # it takes the size of pictures over from stage 1
            teacher = 0 if wanted.student == 'locator' else 1
            inherited = before[teacher] if teacher in before else inherited_settings(wanted)
            wanted = presets.resolve(flags, inherited=inherited)
        else:
            before[wanted.stage] = {name: getattr(wanted, name) for name in SIZES}
        Trainer(wanted).rehearse()
    print('dry run: nothing was written')


def run_one(flags: dict) -> int:
    """One phase of one stage; the exit code."""
    import checkpoint as checkpoints

    wanted = presets.resolve(flags)
    sources = []
    paths = choose_checkpoints(wanted) if wanted.phase != 'pseudo_mask' else []
    for path in paths:
        try:
            source = checkpoints.read(path)
        except UserError as error:
            others = len(list(path.parent.glob(f'{wanted.dataset}_params_*.pt'))) > 1
            hint = '; remove it to resume from the one before' if wanted.resume and others else ''
            raise UserError(f'{error}{hint}') from None
        print(f'checkpoint: {path} (iteration {source.iteration})')
        saved = source.settings
        if wanted.phase == 'train' and not wanted.resume:
            # only the networks are taken over, not how they were trained
            saved = {name: saved[name] for name in presets.ARCHITECTURE_FIELDS if name in saved}
        sources.append((source, presets.resolve(flags, saved, str(path))))
    if wanted.phase == 'val':  # best.pt mostly is one of the numbered files
        sources = list({checkpoints.fingerprint(source): (source, own)
                        for source, own in reversed(sources)}.values())[::-1]
    if sources:
        wanted = sources[0][1]
    elif wanted.phase == 'train' and wanted.stage == 2:
        wanted = presets.resolve(flags, inherited=inherited_settings(wanted))
    return carry_out(wanted, sources)


def carry_out(wanted: presets.Settings, sources: list) -> int:
    """The phase on its own, so that its networks are gone before processes part; the exit code."""
    from trainer import Trainer

    trainer = Trainer(wanted)
    if wanted.phase == 'train':
        return train(trainer, sources[0][0] if sources else None)
    if wanted.phase == 'val':
        trainer.val(sources)
    elif wanted.phase == 'test':
        return trainer.test(sources[0][0])
    else:
        trainer.pseudo_mask()
    return 0


def train(trainer, source) -> int:
    """Train, and say what is kept if that stops early; the exit code."""
    from steps import Diverged

    def say_how_to_go_on(reason):
        kept = (f'{trainer.last_saved} is kept, and --resume True goes on from it'
                if trainer.last_saved else 'no checkpoint had been written yet')
        print(f'{reason}; {kept}', file=sys.stderr)

    try:
        trainer.train(source)
    except KeyboardInterrupt as signal:
        say_how_to_go_on(f'{str(signal) or "interrupted"}: left at once')
        return INTERRUPTED
    except (Diverged, OSError) as problem:
        say_how_to_go_on(f'stopped: {problem}')
        return 1
    except UserError as problem:
        if not trainer.iteration:  # before the first iteration it is bad input
            raise
        say_how_to_go_on(f'stopped: {problem}')
        return 1
    if trainer.stopped:
        say_how_to_go_on(f'{interruption.asked or "stopped"}: iteration {trainer.iteration} is done')
    return 0


INTERRUPTED = 130  # as shells have it


def main() -> int:
    """Exit code: 0 done, or stopped by a signal with everything saved; 1 stopped by something that
    went wrong; 2 bad input; 130 left at once."""
    if os.environ.get('RANK', '0') != '0':  # of several processes the first one speaks
        sys.stdout = open(os.devnull, 'w')
        os.environ['TQDM_DISABLE'] = '1'
    try:
        with interruption.listening():
            return run(vars(build_parser().parse_args()))
    except UserError as error:
        if os.environ.get('LOCAL_RANK', '0') == '0':  # once on every machine
            print(f'error: {error}', file=sys.stderr)
        else:  # torchrun ends the others as soon as one has failed: let the first one speak
            time.sleep(3)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return INTERRUPTED
    except OSError as error:  # a full disk, a folder that went away
        if error.errno == errno.ENAMETOOLONG:
            print(f'error: {error.filename}: too long for a file name; give another', file=sys.stderr)
            return 2
        print(f'error: {error}', file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search(r"out of memory|can't allocate memory",
                                                             str(error)):
            raise
        print('error: out of memory; lower --batch_size, --img_size or --ch, or, if it is the '
              "machine's own memory, --cache_mb", file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
