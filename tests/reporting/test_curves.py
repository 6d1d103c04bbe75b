"""The curves of a run's losses and metrics."""
import subprocess
import sys

import numpy as np
from PIL import Image

from helpers import PROJECT
from reporting import curves

HEADER = 'iteration,total,unused,mask_share\n'


def test_reads_only_whole_rows(tmp_path):
    path = tmp_path / 'losses.csv'
    path.write_text(HEADER + '1,2.5,0,0.5\n2,nan,0,0.4\n3,1')  # the last one is being written
    table = curves.read(path)
    assert list(table) == ['iteration', 'total', 'unused', 'mask_share']
    np.testing.assert_array_equal(table['iteration'], [1, 2])
    assert curves.read(tmp_path / 'absent.csv') == {}
    path.write_text(HEADER)
    assert curves.read(path) == {} and curves.draw(tmp_path) is None


def test_a_panel_for_every_table_and_loss(tmp_path):
    rows = ''.join(f'{i},{1000 / i},0,{"nan" if i == 7 else 0.5}\n' for i in range(1, 60))
    (tmp_path / 'losses.csv').write_text(HEADER + rows)
    two = Image.open(curves.draw(tmp_path)).size  # total, mask_share
    (tmp_path / 'val.csv').write_text('iteration,JA,AC,DI,SE,SP\n50,40,90,55,60,99\n')
    three = Image.open(curves.draw(tmp_path)).size
    assert 1.4 < three[0] / two[0] < 1.6 and three[1] == two[1]  # a panel more, in the same row
    assert sorted(path.name for path in tmp_path.iterdir()) == ['curves.png', 'losses.csv',
                                                                'val.csv']


def test_command(tmp_path):
    def run():
        return subprocess.run([sys.executable, '-m', 'reporting.curves', str(tmp_path)],
                              cwd=PROJECT, capture_output=True, text=True)
    empty = run()
    assert empty.returncode == 2 and empty.stderr.startswith('usage:')
    (tmp_path / 'losses.csv').write_text(HEADER + '1,2,3,0.5\n')
    assert run().stdout.strip() == str(tmp_path / 'curves.png')
