"""Folders that replace others when they are whole."""
import utils
from helpers import names


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
