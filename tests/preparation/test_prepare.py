"""--phase prepare in all formats: seed, overwriting, interruption, bad input."""
from pathlib import Path
from unittest import mock

import pytest

from helpers import assert_one_line_error
from nifti_files import store_case
from preparation import writer
from prepared import snapshot


def test_the_seed_decides(program, folders, tree):
    def prepare(*flags):
        program.done(*flags, '--overwrite', True)
        return snapshot(program.data)
    for flags in (('--source', *folders, '--source_format', 'folders'),
                  ('--source', tree, '--source_format', 'brats', '--z_range', 'all',
                   '--split', .4, .3, .3, '--lesion_px', 100)):
        first = prepare(*flags)
        assert prepare(*flags) == first
        assert prepare(*flags, '--seed', 1).keys() != first.keys()


def test_nothing_is_overwritten_without_the_flag(program, folders):
    flags = '--source', *folders, '--source_format', 'folders'
    data = program.data
    data.mkdir(parents=True)  # an empty folder may be filled
    program.done(*flags)
    before = snapshot(data)
    assert_one_line_error(program.run(*flags, '--seed', 1), 'Made', '--overwrite True')
    assert snapshot(data) == before

    def assert_refused(*parts: str) -> None:
        assert_one_line_error(program.run(*flags, '--overwrite', True), *parts)
    description = (data / 'prepare.json').read_text()
    (data / 'prepare.json').unlink()  # a folder that the user made
    assert_refused('not made by --phase prepare')
    (data / 'prepare.json').write_text('{}')
    assert_refused('prepare.json', 'damaged')
    (data / 'prepare.json').write_text(description)
    (data / 'trainA' / 'foreign.png').write_text('')
    assert_refused('1 file', 'trainA/foreign.png')
    (data / 'trainA' / 'foreign.png').unlink()
    next((data / 'trainA').iterdir()).unlink()
    program.done(*flags, '--overwrite', True)
    assert snapshot(data) == before  # nothing of the earlier one is left


def test_interrupted(program, folders, monkeypatch):
    """No half-written data set stays, and the earlier one does."""
    flags = '--source', *folders, '--source_format', 'folders'
    data = program.data
    program.done(*flags)
    before = snapshot(data)
    pair = writer.read_pair(folders[0] / 'p0.png', None)
    interrupted_read = mock.Mock(side_effect=[pair] * 3 + [KeyboardInterrupt])
    monkeypatch.setattr(writer, 'cpu_count', lambda: 0)
    monkeypatch.setattr(writer, 'read_pair', interrupted_read)
    assert program.run(*flags, '--overwrite', True).returncode == 130
    assert interrupted_read.call_count == 4
    monkeypatch.undo()
    rename = Path.rename

    def interrupted_rename(path, target):
        if path.name.endswith('.part'):
            raise KeyboardInterrupt
        return rename(path, target)
    monkeypatch.setattr(Path, 'rename', interrupted_rename)
    assert program.run(*flags, '--overwrite', True).returncode == 130
    monkeypatch.undo()
    assert snapshot(data) == before
    assert [path.name for path in data.parent.iterdir()] == ['Made']
    # killed between the two renamings: the next run brings the earlier one back
    data.rename(data.with_name('.Made.old'))
    assert_one_line_error(program.run(*flags), '--overwrite True')
    assert snapshot(data) == before


ISIC, BRATS, FOLDERS = (f'--source_format {name} --source '
                        for name in ('isic', 'brats', 'folders'))
TWO = FOLDERS + 'ill well '


@pytest.mark.parametrize('flags, parts', (
    (ISIC + 'gone', ['--source gone', 'no such folder']),
    ('--source . --source_format dicom', ['--source_format']),
    ('--source .', ['--source_format', 'brats, isic, folders']),
    ('--source_format isic', ['--source', 'downloaded']),
    (ISIC + 'empty', ['ISIC_<number>', 'folders']),
    (BRATS + 'empty', ['_flair.nii.gz or _t2f.nii.gz']),
    (FOLDERS + 'ill', ['trainA', 'give two']),
    (FOLDERS + 'ill empty', ['empty', 'holds no images']),
    (FOLDERS + 'ill well labels empty', ['4 folders']),
    (FOLDERS + 'ill ill', ['--source ill', 'given twice']),
    (FOLDERS + 'ill well empty', ['empty', 'holds no images']),
    (FOLDERS + 'ill/p0.png well', ['p0.png', 'give the folder']),
    (BRATS + 'tree empty', ['empty', 'holds no volumes']),
    (BRATS + 'tree --z_range 12-3', ['--z_range 12-3', '90-120']),
    (BRATS + 'tree --z_range 90-120', ['--z_range 90-120', 'largest has 0 px', 'another range']),
    (BRATS + 'tree --modality t2', ['_t2.nii.gz', 'there are flair, seg', '--modality']),
    *((f'{TWO} {split}', [split]) for split in ('--split 1 2', '--split a b c', '--split 2 .5 1',
                                                '--split -1 1 1', '--split 0 0 0')),
    (TWO + '--split 90 0 1', ['only 7 for train, 0 for val, 1 for test']),
    (TWO + '--dataset phantom', ['built in']),
    (TWO + '--dataset a/b', ['--data_root']),
    (TWO + '--data_root ill', ['in one another']),
))
def test_bad_input(program, folders, tmp_path, monkeypatch, flags, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    store_case(tmp_path / 'tree', 'a')
    assert_one_line_error(program.run(*flags.split()), *parts)
    assert not program.data.exists() and not any(tmp_path.rglob('.*.part'))
