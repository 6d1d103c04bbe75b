"""What a trained stage teaches the next one: its soft masks as files, and pseudo-labels of them."""
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import checkpoint as checkpoints
import dataset
from config import Config
from image_files import open_image
from inference.postprocess import pseudo_label, to_bytes
from inference.soft_masks import SoftMask, config_of_network, mask_network, soft_masks, to_array
from reporting import visualize
from runtime import distributed
from runtime.files import TEXT, writing
from runtime.lock import locked
from runtime.staging import (
    changed_files,
    digests,
    new_staging_folder,
    remove_leftovers,
    replace_folder,
)
from utils import UserError, progress_interval

# published folders of stage-1 masks, syn_<split> -> folder of the images they are of
RECORD = 'written.json'  # in a folder of soft masks: digests of the other files
SPLITS = {'trainA': 'trainA', 'valA': 'val', 'testA': 'testA'}


def pseudo_labels(masks: Tensor, images: Tensor, rule: str, config: Config) -> list[np.ndarray]:
    """H×W bool each: pseudo-labels of soft masks B×1×H×W in [-1, 1] of images B×C×H×W in [-1, 1],
    by one of PSEUDO_LABEL_RULES."""
    return [pseudo_label(to_bytes(to_array(mask[0] + 1) / 2), visualize.from_tensor(image), rule,
                         config.keep_components)
            for mask, image in zip(masks, images, strict=True)]


class PseudoLabeler:
    """The teacher of a stage: its soft masks as files `<folder>/<image stem>.png`, made where they
    are missing.

    The teacher is `file`, a checkpoint of stage 0 (then the files are localization maps,
    `localization_<split>`) or stage 1 (`syn_<split>`). Masks of a stage-1 network are averaged with
    those of the localizer that taught it (`localizer_share`): which are better depends on the data.
    Without a file the masks are those that published data sets bring along."""

    def __init__(self, config: Config, file: Path | None, device: torch.device) -> None:
        self.config, self.device = config, device
        self.checkpoint, self.prefix = None, 'syn'
        self.taught_by = None  # the PseudoLabeler of the localizer that taught a stage-1 network
        if not file:
            return
        self.checkpoint = checkpoints.read(file)
        stage = self.checkpoint.config.get('stage', 1)
        stages = (0,) if config.trained_by_localizer else (0, 1)
        if stage not in stages:
            raise UserError(f'{file}: of stage {stage}; the teacher has to be a checkpoint of '
                            f'stage {" or ".join(map(str, stages))}')
        self.prefix = 'syn' if stage else 'localization'
        if stage and (path := localizer_behind(self.checkpoint)):
            self.taught_by = PseudoLabeler(config, path, device)

    @property
    def origin(self) -> str:
        """Where the masks come from, for the user."""
        return str(self.checkpoint.path if self.checkpoint else self.config.data_folder / 'syn_*')

    def check(self) -> None:
        """Raises UserError where the file's network cannot be used."""
        if self.checkpoint:
            config = config_of_network(self.checkpoint, self.config)
            mask_network(self.checkpoint, config, self.device)
        if self.taught_by:
            self.taught_by.check()

    def keep_copies(self, folder: Path) -> None:
        """Copies of the networks, so that the folder of a run can be tested on its own."""
        if self.checkpoint:
            checkpoints.write_test_part(self.checkpoint, folder / 'teacher.pt', half=False)
        if self.taught_by:
            localizer = self.taught_by.checkpoint
            checkpoints.write_test_part(localizer, folder / 'localizer.pt', half=False)

    def masks(self, split: str, paths: list[Path]) -> dict[str, Path]:
        """The soft-mask file of each of these images of trainA, valA or testA, by its stem."""
        if not self.checkpoint:
            return self._published_masks(split, paths)
        folder = self.config.result_folder / f'{self.prefix}_{split}'
        source = self._source(paths)
        if not self._is_up_to_date(folder, paths, source):
            with ExitStack() as cleanup:
                if distributed.is_main_process():
                    cleanup.enter_context(locked(folder))
                    cleanup.callback(remove_leftovers, folder)
                self._write_masks(split, folder, paths, source)
        return {path.stem: folder / f'{path.stem}.png' for path in paths}

    def _published_masks(self, split: str, paths: list[Path]) -> dict[str, Path]:
        folder = self.config.data_folder / f'syn_{split}'
        by_stem = {path.stem: path for path in dataset.list_images(folder, are_masks=True)}
        if missing := [path for path in paths if path.stem not in by_stem]:
            raise UserError(f'{folder}: no mask of {missing[0].name}; add it, or remove the folder '
                            'to have the masks made')
        return {path.stem: by_stem[path.stem] for path in paths}

    def _source(self, paths: list[Path]) -> dict[str, Any]:
        """What the masks are made with and of; they are made again when it has changed."""
        network = config_of_network(self.checkpoint, self.config)
        localizer = self.taught_by and [checkpoints.fingerprint(self.taught_by.checkpoint),
                                        self.config.localizer_share]
        return {'teacher': checkpoints.fingerprint(self.checkpoint), 'localizer': localizer,
                'tta': network.tta, 'img_size': list(network.size),
                'images': dataset.contents(paths)}

    def _is_up_to_date(self, folder: Path, paths: list[Path], source: dict[str, Any]) -> bool:
        try:
            made_of = json.loads((folder / 'source.json').read_text(**TEXT))
            # masks of other images do not matter: some may be left out this time
            made_of['images'] = {name: content for name, content in made_of['images'].items()
                                 if name in source['images']}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return (made_of == source
                and all((folder / f'{path.stem}.png').is_file() for path in paths))

    def _write_masks(self, split: str, folder: Path, paths: list[Path],
                     source: dict[str, Any]) -> None:
        config = config_of_network(self.checkpoint, self.config)
        maps = self.taught_by and self.taught_by.masks(split, paths)
        network = mask_network(self.checkpoint, config, self.device)
        check_replaceable(folder)
        staging = distributed.from_main(lambda: new_staging_folder(folder))

        def save(soft: SoftMask) -> None:
            mask = soft.mask
            if maps:
                with open_image(maps[soft.path.stem]) as localization_map:
                    share = self.config.localizer_share
                    mask = np.rint(share * np.asarray(localization_map, np.float32)
                                   + (1 - share) * mask).astype(np.uint8)
            with writing(folder / f'{soft.path.stem}.png'):
                Image.fromarray(mask).save(staging / f'{soft.path.stem}.png', compress_level=1)

        mine = distributed.shard(paths)
        for _ in tqdm(soft_masks(network, mine, config, self.device, finish=save),
                      f'soft masks: {folder.name}', len(mine), unit=' images',
                      mininterval=progress_interval()):
            pass
        distributed.barrier()
        if distributed.is_main_process():
            with writing(folder / 'source.json'):
                (staging / 'source.json').write_text(json.dumps(source) + '\n', **TEXT)
                (staging / RECORD).write_text(json.dumps(digests(staging, RECORD)) + '\n', **TEXT)
            replace_folder(folder, staging)
        distributed.barrier()


def check_replaceable(folder: Path) -> None:
    """Raises UserError where a folder of soft masks holds a file that is not as we wrote it."""
    try:
        written = json.loads((folder / RECORD).read_text('utf-8'))
        changed = [name for name in changed_files(folder, written, RECORD)
                   if os.path.lexists(folder / name)]  # those that are gone can be made anew
    except (OSError, ValueError, AttributeError):
        changed = list(digests(folder, RECORD))
    if changed:
        raise UserError(f'{folder}: soft masks have to be written there, but it holds '
                        f'{changed[0]}, which this program did not write, or which changed since; '
                        'move the folder away')


def find_teacher(config: Config, device: torch.device, run_folder: Path | None,
                 required: bool = True) -> PseudoLabeler | None:
    """The teacher of a stage, see `choose_teacher`; None where the stage has none, or where it is
    not `required` and cannot be had. Raises UserError."""
    if config.stage != 2 and not config.trained_by_localizer:
        return None
    try:
        teacher = PseudoLabeler(config, choose_teacher(config, run_folder), device)
        if config.phase == 'train':  # before an earlier run is moved away
            teacher.check()
    except UserError:
        if required:
            raise
        print('no stage-1 network at hand, so its masks are not shown beside the student\'s')
        return None
    print(f'teacher: {teacher.origin}')
    return teacher


def localizer_behind(checkpoint: checkpoints.Checkpoint) -> Path | None:
    """The file of a localizer, if any: this one, or the one beside it that taught stage 1."""
    file = checkpoint.path
    if checkpoint.config.get('stage') == 0:
        return file
    path = file.with_name('localizer.pt' if file.name == 'teacher.pt' else 'teacher.pt')
    return path if checkpoint.config.get('localization_weight') and path.is_file() else None


def choose_teacher(config: Config, run_folder: Path | None = None) -> Path | None:
    """The checkpoint file of the teacher; None where the data set brings its masks along.

    --teacher (of a folder its best), else the one that the run used (`teacher.pt` in its folder),
    else for stage 2 none if there are syn_* folders, else the best of stage 1 or, for a student, of
    stage 0. Raises UserError.
    """
    if config.teacher:
        path = Path(config.teacher)
        return path.is_dir() and checkpoints.best_of_run(path, config.dataset) or path
    if run_folder and (run_folder / 'teacher.pt').is_file():
        return run_folder / 'teacher.pt'
    if config.trained_by_localizer:
        return checkpoints.choose_for_test(config.result_folder, config.dataset, stage=0)
    if any((config.data_folder / f'syn_{split}').is_dir() for split in SPLITS):
        return None
    trained = config.method == 'student' and [
        path for stage in (1, 0)
        if (path := checkpoints.best_of_run(config.result_folder / f'model{stage}',
                                            config.dataset))]
    if trained:
        return trained[0]
    try:
        return checkpoints.choose_for_test(config.result_folder, config.dataset, stage=1)
    except UserError as error:
        raise UserError(f'a network of stage 1 or 0 is needed as teacher: {error}'
                        .replace('--checkpoint', '--teacher')) from None
