"""The tables of a training run, their curves, and what becomes of earlier runs."""
import subprocess
import sys
from datetime import datetime
from unittest import mock

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from helpers import PROJECT, names
from reporting import curves
from reporting.training_log import CsvLog, archive_earlier_run

HEADER = 'iteration,total,unused,mask_share\n'


def test_a_table_keeps_names_and_earlier_rows(tmp_path):
    path = tmp_path / 'val.csv'
    path.write_text('iteration,JA,AC\n1,10,5\n2,20,6\n3,')
    log = CsvLog(path, ['JA', 'AC'], start=1)
    log.write(2, {'AC': 0.123456789, 'JA': 31})
    with pytest.raises(ValueError, match='missing: AC'):
        log.write(3, {'JA': 1})
    log.close()
    assert path.read_text().split() == ['iteration,JA,AC', '1,10,5', '2,31,0.123457']


def test_runs_that_begin_in_one_second_all_stay(tmp_path):
    with mock.patch('reporting.training_log.datetime') as clock:
        clock.now.return_value = datetime(2030, 1, 1)
        for run in range(3):
            for kind in ('model1', 'log1', 'test1', 'model0'):
                (tmp_path / kind).mkdir(exist_ok=True)
                (tmp_path / kind / f'{run}.txt').touch()
            archive = archive_earlier_run(tmp_path, stage=1)
            assert names(archive) == ['log1', 'model1', 'test1']
            assert names(archive / 'model1') == [f'{run}.txt']
    first = 'earlier_20300101_000000'
    assert names(tmp_path) == [first, f'{first}_2', f'{first}_3', 'model0']


def test_curves_are_of_whole_rows(tmp_path):
    path = tmp_path / 'losses.csv'
    path.write_text(HEADER + '1,2.5,0,0.5\n2,nan,0,0.4\n3,1')  # the last one is being written
    table = curves.read(path)
    assert list(table) == HEADER.strip().split(',')
    np.testing.assert_array_equal(table['iteration'], [1, 2])
    assert curves.read(tmp_path / 'absent.csv') == {}
    path.write_text(HEADER)
    assert curves.read(path) == {} and curves.draw(tmp_path) is None


def test_a_panel_for_every_table_and_loss(tmp_path):
    rows = ''.join(f'{i},{1000 / i},0,{"nan" if i == 7 else 0.5}\n' for i in range(1, 60))
    (tmp_path / 'losses.csv').write_text(HEADER + rows)
    with mock.patch.object(Figure, 'savefig', autospec=True, side_effect=Figure.savefig) as save:
        two = Image.open(curves.draw(tmp_path)).size  # total, mask_share
    legend, = save.call_args.args[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ['each iteration', 'running median']
    (tmp_path / 'val.csv').write_text('iteration,JA,AC,DI,SE,SP\n50,40,90,55,60,99\n')
    three = Image.open(curves.draw(tmp_path)).size
    assert 1.4 < three[0] / two[0] < 1.6 and three[1] == two[1]  # a panel more, in the same row
    assert names(tmp_path) == ['curves.png', 'losses.csv', 'val.csv']


def test_the_command_that_draws_curves(tmp_path):
    line = [sys.executable, '-m', 'reporting.curves', str(tmp_path)]
    empty = subprocess.run(line, cwd=PROJECT, capture_output=True, text=True)
    assert empty.returncode == 2 and empty.stderr.startswith('usage:')
    (tmp_path / 'losses.csv').write_text(HEADER + '1,2,3,0.5\n')
    assert subprocess.check_output(line, cwd=PROJECT, text=True).strip() == str(
        tmp_path / 'curves.png')
