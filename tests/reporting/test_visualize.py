"""Outlines and image grids."""
import cv2
import numpy as np
import pytest
from PIL import ImageFont

from helpers import disc
from reporting import visualize


@pytest.mark.parametrize('side', [96, 256, 1500])
def test_outlines_have_2_px_or_more_where_images_are_shown(side):
    mask = disc((side, side), (side / 2, side / 2), side / 4)
    image = visualize.overlay(np.zeros((side, side, 3), np.uint8), mask, None)
    for shown in (image, cv2.resize(image, (192, 192), interpolation=cv2.INTER_AREA)):
        row = shown[len(shown) // 2, :, 0] / 255  # goes through both sides of the outline
        assert row.sum() >= 2 * 2


def test_a_grid_shows_columns_by_title_and_rows_by_kind():
    image = np.full((20, 40, 3), (255, 0, 0), np.uint8)
    columns = {'train\na.png': {'image': image, 'mask': image}, 'val\na.png': {'image': image}}
    grid = visualize.image_grid(columns, 64)
    assert (grid == (255, 0, 0)).all(-1).sum() == 3 * 64 * 32  # in proportion
    end = -visualize.GAP
    assert (grid[end - 64:end, end - 64:end] == visualize.MISSING_COLOR).all()
    for other in ({'train\nb.png': columns['train\na.png'], 'val\na.png': {'image': image}},
                  {'train\na.png': columns['train\na.png'], 'test\na.png': {'image': image}}):
        assert (visualize.image_grid(other, 64) != grid).any()


def test_long_names_keep_both_ends():
    font = ImageFont.load_default(10)
    name = 'TCGA_CS_4941_19960909_17.png'
    short = visualize.shorten(name, font, 100)
    assert font.getlength(short) <= 100 and visualize.shorten(name, font, 900) == name
    begin, end = short.split('…')
    assert name.startswith(begin) and name.endswith(end) and begin and end
