"""Files that are whole or not there, folders that replace others."""
import pytest

import utils
from helpers import names


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
    assert path.read_text() == 'old' and names(tmp_path) == ['x.txt']


def test_a_folder_is_replaced_when_its_successor_is_whole(tmp_path):
    folder = tmp_path / 'set'
    for content in ('old', 'new'):
        staging = utils.new_staging_folder(folder)
        (staging / 'x.txt').write_text(content)
        assert not folder.exists() or (folder / 'x.txt').read_text() == 'old'
        utils.replace_folder(folder)
    assert (folder / 'x.txt').read_text() == 'new' and names(tmp_path) == ['set']
    folder.rename(tmp_path / '.set.old')  # ended between the two renamings
    utils.new_staging_folder(folder)
    utils.remove_staging(folder)
    assert (folder / 'x.txt').read_text() == 'new' and names(tmp_path) == ['set']
