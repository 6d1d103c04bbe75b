"""The tables and image grids of a training run."""
from datetime import datetime
from unittest import mock

import numpy as np
import pytest

from helpers import names, read_csv
from reporting import training_log
from reporting.training_log import CsvLog, TrainingLog, archive_earlier_run


def test_values_stand_in_the_columns_of_their_names(tmp_path):
    log = CsvLog(tmp_path / 'losses.csv', ['total', 'dice'], start=0)
    log.write(1, {'dice': 0.123456789, 'total': 2})
    for values, name in (({'total': 1}, 'missing: dice'),
                         ({'total': 1, 'dice': 1, 'cycle': 1}, 'unknown: cycle')):
        with pytest.raises(ValueError, match=name):
            log.write(2, values)
    log.close()
    row, = read_csv(tmp_path / 'losses.csv')
    assert row == {'iteration': '1', 'total': '2', 'dice': '0.123457'}


def test_a_resumed_table_keeps_rows_up_to_its_start(tmp_path):
    path = tmp_path / 'val.csv'
    path.write_text('iteration,JA\n1,10\n2,20\n3,30\n4,')
    log = CsvLog(path, ['JA'], start=2)
    log.write(3, {'JA': 31})
    log.close()
    assert [row['JA'] for row in read_csv(path)] == ['10', '20', '31']
    CsvLog(path, ['JA'], start=0).close()  # a new run begins anew
    assert read_csv(path) == [] and names(tmp_path) == ['val.csv']


def test_what_a_run_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(training_log, 'MAX_IMAGE_GRIDS', 2)
    image = np.zeros((8, 8, 3), np.uint8)
    with TrainingLog(tmp_path, 0, 0, ['total'], ['JA']) as log:
        for iteration in (1, 2, 3):
            log.add_losses(iteration, {'total': 1.0, 'mask_share': 0.5, 'skipped': 0.0})
            log.add_image_grid(iteration, {'image': [image, image]})
        with pytest.raises(ValueError, match='missing: skipped'):
            log.add_losses(4, {'total': 1.0, 'mask_share': 0.5})
        log.add_val(3, {'JA': 50.0})
        assert not (tmp_path / 'log0' / 'score.csv').exists()
        log.add_score(3, 40.0)
    assert list(read_csv(tmp_path / 'log0' / 'losses.csv')[0]) == [
        'iteration', 'total', 'mask_share', 'skipped']
    assert read_csv(tmp_path / 'log0' / 'val.csv') == [{'iteration': '3', 'JA': '50'}]
    assert read_csv(tmp_path / 'log0' / 'score.csv') == [{'iteration': '3', 'score': '40'}]
    assert (tmp_path / 'log0' / 'curves.png').is_file()
    assert names(tmp_path / 'img0') == ['A2B_0000002.png', 'A2B_0000003.png']


def test_other_processes_write_nothing(tmp_path):
    with TrainingLog(tmp_path, 0, 0, ['total'], ['JA'], writes=False) as log:
        log.add_losses(1, {'total': 1.0})
        log.add_val(1, {'JA': 50.0})
        log.add_score(1, 40.0)
        log.add_image_grid(1, {})
        log.flush()
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------- earlier runs


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


def test_a_test_of_another_checkpoint_is_no_earlier_run(tmp_path):
    (tmp_path / 'test1' / 'best').mkdir(parents=True)
    (tmp_path / 'model1').mkdir()
    assert archive_earlier_run(tmp_path, stage=1) is None
    assert names(tmp_path) == ['model1', 'test1']
