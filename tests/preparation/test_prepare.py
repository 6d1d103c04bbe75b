"""--phase prepare in all formats: seed, overwriting, interruption, bad input."""
from pathlib import Path

import pytest

from helpers import assert_one_line_error
from nifti_files import store_case
from preparation import writer
from prepared import snapshot


def test_the_seed_decides(program, folders, tree):
    def prepare(*flags):
        assert program.run(*flags, '--overwrite', True).returncode == 0
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

    def assert_refused(*parts):
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
    calls, read_pair = [], writer.read_pair

    def interrupted_read(*arguments):
        calls.append(arguments)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return read_pair(*arguments)
    monkeypatch.setattr(writer, 'cpu_count', lambda: 0)
    monkeypatch.setattr(writer, 'read_pair', interrupted_read)
    assert program.run(*flags, '--overwrite', True).returncode == 130
    assert len(calls) == 4
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


FOLDERS = ['--source', 'ill', 'well', '--source_format', 'folders']
BRATS = ['--source', 'tree', '--source_format', 'brats']


@pytest.mark.parametrize('flags, parts', (
    (['--source', 'gone', '--source_format', 'isic'], ['--source gone', 'no such folder']),
    (['--source', '.', '--source_format', 'dicom'], ['--source_format']),
    (['--source', '.'], ['--source_format', 'brats, isic, folders']),
    (['--source_format', 'isic'], ['--source', 'downloaded']),
    (['--source', 'empty', '--source_format', 'isic'], ['ISIC_<number>', 'folders']),
    (['--source', 'empty', '--source_format', 'brats'], ['_flair.nii.gz or _t2f.nii.gz']),
    (['--source', 'ill', '--source_format', 'folders'], ['trainA', 'give two']),
    (['--source', 'ill', 'empty', '--source_format', 'folders'], ['empty', 'holds no images']),
    (['--source', 'ill', 'well', 'labels', 'empty', '--source_format', 'folders'], ['4 folders']),
    (['--source', 'ill', 'ill', '--source_format', 'folders'], ['--source ill', 'given twice']),
    (['--source', 'ill', 'well', 'empty', '--source_format', 'folders'],
     ['empty', 'holds no images']),
    (['--source', 'ill/p0.png', 'well', '--source_format', 'folders'],
     ['p0.png', 'give the folder']),
    (['--source', 'images.zip', '--source_format', 'isic'], ['images.zip', 'unpack it']),
    (['--source', 'tree', 'empty', '--source_format', 'brats'], ['empty', 'holds no volumes']),
    ([*BRATS, '--z_range', '12-3'], ['--z_range 12-3', '90-120']),
    ([*BRATS, '--z_range', '90-120'],
     ['--z_range 90-120', 'largest has 0 px', 'another range']),
    ([*BRATS, '--modality', 't2'], ['_t2.nii.gz', 'there are flair, seg', '--modality']),
    ([*FOLDERS, '--split', '1', '2'], ['--split 1 2']),
    ([*FOLDERS, '--split', 'a', 'b', 'c'], ['--split a b c']),
    ([*FOLDERS, '--split', '2', '.5', '1'], ['--split 2 .5 1']),
    ([*FOLDERS, '--split', '-1', '1', '1'], ['--split -1 1 1']),
    ([*FOLDERS, '--split', '0', '0', '0'], ['--split 0 0 0']),
    ([*FOLDERS, '--split', '90', '0', '1'], ['only 7 for train, 0 for val, 1 for test']),
    ([*FOLDERS, '--dataset', 'phantom'], ['built in']),
    ([*FOLDERS, '--dataset', 'a/b'], ['--data_root']),
    ([*FOLDERS, '--dataset', '.hidden'], ['.hidden', '--data_root']),
    ([*FOLDERS, '--data_root', 'ill'], ['in one another']),
))
def test_bad_input(program, folders, tmp_path, monkeypatch, flags, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'images.zip').touch()
    store_case(tmp_path / 'tree', 'a')
    result = program.run(*flags)
    assert_one_line_error(result, *parts)
    assert not program.data.exists() and not any(tmp_path.rglob('.*.part'))
