"""The tables of a training run, and what becomes of earlier runs."""
from datetime import datetime
from unittest import mock

import pytest

from helpers import names
from reporting.training_log import CsvLog, archive_earlier_run


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
                (tmp_path / kind / f'{run}.txt').write_text('')
            archive = archive_earlier_run(tmp_path, stage=1)
            assert names(archive) == ['log1', 'model1', 'test1']
            assert names(archive / 'model1') == [f'{run}.txt']
    assert names(tmp_path) == ['earlier_20300101_000000', 'earlier_20300101_000000_2',
                               'earlier_20300101_000000_3', 'model0']
