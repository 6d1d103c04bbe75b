"""Files that are whole or not there, folders that replace others, and finding files."""
import numpy as np
import pytest

import utils


@pytest.mark.parametrize('durable', [False, True])
def test_a_file_is_written_whole_or_not_at_all(durable, tmp_path):
    path = tmp_path / 'x.txt'
    with utils.atomic_write(path, durable) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == '.txt'
        assert temporary.name.startswith(utils.TEMPORARY)
        temporary.write_text('old')
        assert not path.exists()
    with pytest.raises(ValueError), utils.atomic_write(path, durable) as temporary:
        temporary.write_text('half')
        raise ValueError
    assert path.read_text() == 'old'
    assert [path.name for path in tmp_path.iterdir()] == ['x.txt']


def test_a_folder_is_replaced_when_its_successor_is_whole(tmp_path):
    folder = tmp_path / 'set'
    for content in ('old', 'new'):
        staging = utils.new_staging_folder(folder)
        (staging / 'x.txt').write_text(content)
        assert not folder.exists() or (folder / 'x.txt').read_text() == 'old'
        utils.replace_folder(folder)
    assert (folder / 'x.txt').read_text() == 'new'
    assert list(tmp_path.iterdir()) == [folder]


def test_what_an_interrupted_program_left_is_removed(tmp_path):
    folder = tmp_path / 'set'
    (utils.new_staging_folder(folder) / 'x.txt').touch()
    (tmp_path / '.set.old').mkdir()
    (tmp_path / '.set.old' / 'kept.txt').touch()
    utils.remove_staging(folder)  # ended between the two renamings: the old one comes back
    assert list(tmp_path.iterdir()) == [folder] and (folder / 'kept.txt').exists()


def test_files_are_found_in_subfolders_but_not_among_hidden_ones(tmp_path):
    for name in ('b.PNG', 'in/side/a.png', 'a.jpg', '.hidden.png', '.folder/x.png', 'a.png~'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'folder.png').mkdir()
    assert [str(path.relative_to(tmp_path)) for path in utils.find_files(tmp_path, {'.png'})] == [
        'b.PNG', 'in/side/a.png']


def test_evenly_spaced_items_and_values_rescaled():
    assert utils.evenly_spaced(list(range(10)), 3) == [0, 4, 8]
    assert utils.evenly_spaced([], 3) == [] and utils.evenly_spaced([1, 2], 5) == [1, 2]
    assert utils.rescale_to_unit(np.array([3, 5, 7])).tolist() == [0, 0.5, 1]
    assert utils.rescale_to_unit(np.full(3, 9)).tolist() == [0, 0, 0]
