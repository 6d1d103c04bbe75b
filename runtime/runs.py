"""What runs left in a result folder: their checkpoints by iteration, and the order of the stages;
what is still to be done, in words.
Names are compared, never used as patterns, and no file's time counts."""
import json
import re
from pathlib import Path

from config import Config
from runtime.files import TEXT, atomic_write

STAGES = (0, 1, 2)
METHOD_TEXTS = {'localizer': 'localizer', 'label_transfer': 'label transfer',
                'label_transfer_refine': 'label transfer given stage-1 soft masks',
                'student': 'student'}
QUICK_TEXT = 'trained with --quick, far shorter than usual'


def numbered(folder: Path, dataset: str) -> list[Path]:
    """`<dataset>_params_<digits>.pt` in a folder, oldest iteration first."""
    pattern = re.compile(re.escape(dataset) + r'_params_(\d+)\.pt')
    by_iteration = [(int(match[1]), path) for path in (folder.iterdir() if folder.is_dir() else ())
                    if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(by_iteration)]


def checkpoints_of(config: Config) -> list[Path]:
    """The numbered checkpoints of a run, oldest first."""
    return numbered(config.run_folder, config.dataset)


def record_stage(config: Config) -> None:
    """Note in `stages.json` of the result folder that this stage saved a checkpoint."""
    stages = saved_order(config)
    if stages[-1:] != [config.stage]:
        stages = [stage for stage in stages if stage != config.stage] + [config.stage]
        with atomic_write(config.result_folder / 'stages.json') as temporary:
            temporary.write_text(json.dumps(stages) + '\n', **TEXT)


def saved_order(config: Config) -> list[int]:
    """The stages by when they last saved a checkpoint, as far as is recorded."""
    try:
        stages = json.loads((config.result_folder / 'stages.json').read_text(**TEXT))
    except (OSError, ValueError):
        return []
    return [stage for stage in stages if stage in STAGES] if isinstance(stages, list) else []


def last_trained(config: Config) -> int | None:
    """The stage that saved a checkpoint last, of those that still have one; without a record the
    highest, since stages are trained in turn. None if there is no checkpoint."""
    order = saved_order(config)
    trained = [stage for stage in STAGES
               if numbered(config.result_folder / f'model{stage}', config.dataset)]
    return max(trained, default=None, key=lambda stage: (
        order.index(stage) if stage in order else -1, stage))


def iterations_left(config: Config) -> int:
    """How many iterations a training is to do; of a resumed one those after its checkpoint."""
    done = checkpoints_of(config)[-1:] if config.resume else []
    return max(0, config.iteration - sum(int(path.stem.rpartition('_')[2]) for path in done))


def stage_text(config: Config) -> str:
    """What a training is to do, to print."""
    left, text = iterations_left(config), f'stage {config.stage} ({METHOD_TEXTS[config.method]})'
    if not config.resume:
        return f'{text}, {left} iterations'
    if not checkpoints_of(config):
        return (f'{text}, {left} iterations from the beginning (nothing to resume in '
                f'{config.run_folder})')
    return f'{text}, {left} iterations to go' if left else f'{text}, done already'
