"""--phase prepare: from downloads to a data set folder (trainA, trainB, testA, …).

Three source formats: `brats` (trees of NIfTI volumes with segmentations), `isic` (dermoscopy images
with or without segmentations) and `folders` (any folders of images). Labels are prepared for val
and test only. The folder appears when it is complete; prepare.json in it lists sources and files.
"""
import json
from pathlib import Path

from config import Config
from preparation import brats, folders, isic
from preparation.writer import DatasetWriter, TooFewImages, digest_of_text
from runtime.files import TEXT
from runtime.lock import locked
from runtime.staging import changed_files, new_staging_folder, remove_leftovers, replace_folder
from utils import UserError

FORMATS = {'brats': brats.from_brats, 'isic': isic.from_isic, 'folders': folders.from_folders}
ARCHIVES = ('.zip', '.tar', '.gz', '.tgz', '.7z')


def run(config: Config) -> int:
    """Prepare `config.data_folder` from `config.source`; the exit code is 1 where broken files were
    left out. Raises UserError for sources or options of no use, or a folder that must stay."""
    sources = check_sources(config)
    folder = config.data_folder
    with locked(folder, '--data_root'):
        remove_leftovers(folder)
        check_target(config)
        try:
            writer = write(config, sources)
            check_target(config)  # labels may have been edited meanwhile
            replace_folder(folder, writer.folder)
        finally:
            remove_leftovers(folder)
    print(writer.summary())
    return writer.problems.report()


def write(config: Config, sources: list[Path], by_fractions: bool = False) -> DatasetWriter:
    """The complete data set in a folder beside its own; where the default of --split counts more
    images than can be used, by fractions. Raises UserError."""
    writer = DatasetWriter(new_staging_folder(config.data_folder, '--data_root'), config)
    if by_fractions:
        writer.take_fractions()
    try:
        FORMATS[config.source_format](writer, sources)
        writer.finish(sources)
    except TooFewImages:
        if config.split:
            raise
        return write(config, sources, True)
    return writer


def check_sources(config: Config) -> list[Path]:
    """The folders to read; raises UserError where these, or the name of the data set, cannot be."""
    if config.source_format not in FORMATS:
        raise UserError('--source_format: --phase prepare needs to know what --source holds: '
                        f'{", ".join(FORMATS)}')
    if not config.source:
        raise UserError('--source: --phase prepare needs the folder that holds what was downloaded')
    if config.dataset == 'phantom':
        raise UserError('--dataset: --phase prepare needs a name for the new data set, other than '
                        'phantom, which is built in')
    if config.dataset.startswith('.'):
        raise UserError(f'--dataset {config.dataset}: a hidden folder; choose a name without the '
                        'dot; --data_root says where it goes')
    sources = [Path(source) for source in config.source]
    for number, source in enumerate(sources):
        if source.is_file():
            is_archive = source.name.lower().endswith(ARCHIVES)
            raise UserError(f'--source {source}: ' + ('an archive; unpack it, and give the folder'
                            if is_archive else 'a file; give the folder that holds it'))
        if not source.is_dir():
            raise UserError(f'--source {source}: no such folder')
        inner, outer = source.resolve(), config.data_folder.resolve()
        if inner == outer or inner in outer.parents or outer in inner.parents:
            raise UserError(f'--source {source} and the new {config.data_folder} would lie in one '
                            'another; choose another place with --data_root')
        if source.resolve() in [earlier.resolve() for earlier in sources[:number]]:
            raise UserError(f'--source {source}: given twice')
    return sources


def check_target(config: Config) -> None:
    """Raises UserError where the data set's folder holds something that must stay. With --overwrite
    a data set is replaced if --phase prepare wrote all of its files as they are."""
    folder, advice = config.data_folder, 'choose another --dataset or --data_root'
    if folder.is_symlink() or folder.exists() and not folder.is_dir():
        raise UserError(f'{folder}: exists already, and is no folder; {advice}')
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / 'prepare.json').is_file():
        raise UserError(f'{folder}: exists already, and was not made by --phase prepare, so it '
                        f'stays; {advice}')
    if not config.overwrite:
        raise UserError(f'{folder}: exists already; --overwrite True replaces it, or {advice}')
    try:
        content = json.loads((folder / 'prepare.json').read_text(**TEXT))
        written = content.pop('files')
        changed = changed_files(folder, {name: digest for name, digest in written.items()
                                         if name != 'prepare.json'})
        if written['prepare.json'] != digest_of_text(content):
            changed.append('prepare.json')
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f'{folder}/prepare.json: damaged, or of an earlier version, so nothing '
                        'says which files are as they were written, and the folder stays; '
                        f'{advice}') from None
    if changed:
        raise UserError(f'{folder}: holds {len(changed)} file{"s" * (len(changed) > 1)} that '
                        '--phase prepare did not write, or that changed or went since, as '
                        f'{changed[0]}; move the folder away, or {advice}')
