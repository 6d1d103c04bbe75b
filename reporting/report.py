"""report.html: the metrics and all images of a test or of val, in one file to look through.

It holds everything it shows, so it can be opened from the disk, sent and kept. The page itself, its
style and its script are report_template.html. What the metrics are comes in as data."""
import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from dataset import read_image
from reporting.tables import rounded
from reporting.visualize import (
    LABEL_COLOR,
    SEGMENTATION_COLOR,
    all_kinds,
    image_grid,
    kind_name,
)
from runtime.files import TEXT, atomic_write

# A report of more entries holds smaller images, so that 1000 of them take less than 30 MB
MAX_LARGE_ENTRIES = 200
LARGE_SIDE, SMALL_SIDE = 256, 192  # px, the longer side
WEBP_QUALITY = 75
HISTOGRAM_BINS = 20  # over 0 to 100 percent
OVERVIEW_CASES, OVERVIEW_SIDE = 8, 192  # columns of the overview, and px of an image there

KIND_MEANINGS = {
    'image': 'the original image',
    'heatmap': 'which regions make the image look diseased, by class attention (stage 0: by the '
               "localizer's logits): blue low, red high, each rescaled to its own range",
    'teacher_mask': 'the soft mask that stage 2 learned from (of stage 0: the localization map)',
    'mask': 'the soft mask: how certain the network is of a lesion at each pixel, from black '
            '(none) to white (certain)',
    'segmentation': 'the lesion (white), decided from the soft mask',
    'label': 'the reference (white), drawn by experts or given by the data set',
    'translation': 'the image as the network expects it without disease',
    'overlay': 'the image with two outlines: segmentation yellow, label light blue',
    'second_segmentation': 'the lesion (white) by the second --input',
    'errors': 'segmentation and label: white both, yellow the segmentation alone (false positive), '
              'light blue the label alone (false negative)',
    'second_errors': 'the same of the second --input'}
BINARY_KINDS = {'segmentation', 'label', 'second_segmentation', 'errors',
                'second_errors'}  # kept without loss, shown with crisp pixels

Case = TypeVar('Case')
MetricInfo = dict[str, tuple[str, str, str]]  # short name -> full name, meaning, unit
Summary = dict[str, dict[str, float | None]]  # mean, median, … -> metric -> value, if defined
Summarize = Callable[[list[dict[str, float | None]]], Summary]


@dataclass(frozen=True)
class Entry:
    """One case of the report."""

    name: str  # the file's stem
    # by kind, in display order: uint8 H×W or H×W×3, a file, or WebP, which the page holds
    images: dict[str, np.ndarray | Path | bytes]
    # by short name, None where undefined; None without a label
    metrics: dict[str, float | None] | None = None


def write(path: Path, title: str, facts: dict[str, str], entries: Iterable[Entry],
          metric_info: MetricInfo, summarize: Summarize) -> None:
    """Write the report as one file; an earlier one stays as it is until the new one is whole.
    `facts` say what made the results: checkpoint, post-processing, … `entries` are gone through
    once, in order, and only their reduced images are kept. `metric_info` declares the metrics, in
    display order, and has to hold JA, which cases are sorted by; those that no entry has are not
    shown. `summarize` computes the rows of the table from the entries' metrics."""
    reduced = _reduce(entries)
    kinds = all_kinds(entry.images for entry in reduced)
    rows = [entry.metrics for entry in reduced if entry.metrics]
    metric_info = {short: info for short, info in metric_info.items()
                   if not rows or any(short in row for row in rows)}
    template = Path(__file__).with_name('report_template.html').read_text('utf-8')
    # by its digest the browser knows the only script it may run, whatever names hold
    script = re.search('<script>(.*?)</script>', template, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    facts = {'images': f'{len(reduced)}, {len(rows) or "none"} with a label', **facts}
    summary = _summary(rows, metric_info, summarize(rows)) if rows else (
        '<p>No image has a label, so there are no metrics.</p>')
    meanings = {kind_name(kind): KIND_MEANINGS.get(kind, '') for kind in kinds}
    legend = _legend() if 'overlay' in kinds else ''
    parts = {'script': [f'sha256-{digest}'], 'title': [escape(title)],
             'facts': [_definitions(facts)], 'metrics': [summary],
             'overview': [_overview(reduced), legend] if kinds else [],
             'kinds': [_definitions(meanings), legend],
             'data': _data(kinds, metric_info, reduced)}
    with (atomic_write(path) as temporary,
          open(temporary, 'w', newline='\n', **TEXT) as file):
        for index, text in enumerate(re.split(r'{{(\w+)}}', template)):
            file.writelines(parts[text] if index % 2 else [text])


def _reduce(entries: Iterable[Entry]) -> list[Entry]:
    """The entries with images of one size, which depends on how many there are."""
    def reduce(entry: Entry) -> Entry:
        return replace(entry, images={kind: _webp(image, kind, side)
                                      for kind, image in entry.images.items()})

    reduced, side = [], LARGE_SIDE
    for entry in entries:
        reduced.append(reduce(entry))
        if len(reduced) > MAX_LARGE_ENTRIES and side == LARGE_SIDE:
            side = SMALL_SIDE
            reduced = [reduce(earlier) for earlier in reduced]
    return reduced


def _webp(source: np.ndarray | Path | bytes, kind: str, side: int) -> bytes:
    """An image as WebP, reduced to at most side × side px."""
    image = _open(source, kind)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2)
    file = BytesIO()
    image.save(file, 'WEBP', quality=WEBP_QUALITY, lossless=kind in BINARY_KINDS)
    return file.getvalue()


def _open(source: np.ndarray | Path | bytes, kind: str) -> Image.Image:
    """An image of an Entry."""
    if isinstance(source, bytes):
        return Image.open(BytesIO(source), formats=('WEBP',))
    image = read_image(source) if isinstance(source, Path) else Image.fromarray(source)
    if kind == 'label':  # in its file lesion may be 1
        half = np.asarray(image).max() / 2
        image = image.point(lambda value: 255 if value > half else 0)
    return image


def across_ranking(cases: Sequence[Case], ja: Callable[[Case], float | None]) -> list[Case]:
    """At most OVERVIEW_CASES cases, evenly spaced from the lowest to the highest JA (`ja` gives
    percent); those without a label come last."""
    ranked = sorted(cases, key=lambda case: 101 if ja(case) is None else ja(case))
    places = np.linspace(0, len(ranked) - 1, min(len(ranked), OVERVIEW_CASES)).round()
    return [ranked[int(place)] for place in places]


def overview(entries: Iterable[Entry]) -> np.ndarray:
    """The image grid of some entries, uint8 H×W×3: a column each, with JA and name."""
    columns = {}
    for entry in entries:
        ja = f'JA {entry.metrics["JA"]:.1f} %' if entry.metrics else 'no label'
        columns[f'{ja}\n{entry.name}'] = {
            kind: np.asarray(_open(image, kind).convert('RGB'))
            for kind, image in entry.images.items()}
    return image_grid(columns, OVERVIEW_SIDE)


def _overview(entries: list[Entry]) -> str:
    """The overview as an image that the page holds."""
    chosen = across_ranking(entries, lambda entry: entry.metrics and entry.metrics['JA'])
    image = overview(chosen)
    data = base64.b64encode(_webp(image, 'overview', max(image.shape))).decode()
    names = ', '.join(escape(entry.name) for entry in chosen)
    return (f'<div class="wide"><img class="overview" width="{image.shape[1]}" '
            f'height="{image.shape[0]}" src="data:image/webp;base64,{data}" '
            f'alt="Overview of {names}"></div>')


def _data(kinds: list[str], metric_info: MetricInfo, entries: list[Entry]) -> Iterator[str]:
    """The script's JSON, in which no HTML tag can begin or end; metrics are texts."""
    def to_json(value: Any) -> str:
        return json.dumps(value).replace('<', '\\u003c')

    shown_kinds = [{'name': kind_name(kind), 'binary': kind in BINARY_KINDS,
                    'meaning': KIND_MEANINGS.get(kind, '')} for kind in kinds]
    yield (f'{{"metrics": {to_json(list(metric_info))}, "kinds": {to_json(shown_kinds)}, '
           '"entries": [')
    for number, entry in enumerate(entries):
        metrics, images = entry.metrics, entry.images
        yield ',\n' if number else '\n'
        yield to_json({
            'name': entry.name, 'JA': float(metrics['JA']) if metrics else None,
            'metrics': [rounded(metrics.get(metric), unit) for metric, (_, _, unit)
                        in metric_info.items()] if metrics else None,
            'images': [base64.b64encode(images[kind]).decode() if kind in images else None
                       for kind in kinds]})
    yield ']}'


def _definitions(items: dict[str, str]) -> str:
    return '<dl>' + ''.join(f'<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>'
                            for name, text in items.items()) + '</dl>'


def _legend() -> str:
    colors = (('segmentation', SEGMENTATION_COLOR), ('label', LABEL_COLOR))
    names = (f'<span><i style="background: rgb{color}"></i>{name}</span>' for name, color in colors)
    return f'<p class="legend">Outlines of the overlay: {", ".join(names)}</p>'


def _summary(rows: list[dict[str, float]], metric_info: MetricInfo, summary: Summary) -> str:
    """The metrics over images: a table, a histogram of each, and what they mean."""
    head = ''.join(f'<th scope="col">{metric} <span>{escape(name)}</span></th>'
                   for metric, (name, _, _) in metric_info.items())
    body = ''.join(f'<tr><th scope="row">{statistic}</th>'
                   + ''.join(f'<td>{rounded(values[metric])}</td>' for metric in metric_info)
                   + '</tr>' for statistic, values in summary.items())
    histograms = ''.join(_histogram(metric, name, [row[metric] for row in rows],
                                    summary['mean'][metric], summary['median'][metric])
                         for metric, (name, _, unit) in metric_info.items() if unit == '%')
    meanings = {f'{metric}, {name}': meaning for metric, (name, meaning, _) in metric_info.items()}
    return (f'<div class="wide"><table><caption>Metrics over {_count_text(len(rows))} with a '
            f'label, in percent; distances in px or mm</caption><thead><tr><td></td>{head}</tr>'
            f'</thead><tbody>{body}</tbody></table></div><div class="histograms">{histograms}</div>'
            f'<details><summary>What the metrics mean</summary>{_definitions(meanings)}</details>')


def _count_text(count: int) -> str:
    return f'{count} image{"s" * (count > 1)}'


def _histogram(metric: str, name: str, values: list[float], mean: float, median: float) -> str:
    """An inline SVG: images by one metric in percent, with mean and median marked."""
    counts, edges = np.histogram(values, HISTOGRAM_BINS, (0, 100))
    fullest, most = int(counts.argmax()), int(counts.max())
    left, top, width, height = 34, 10, 200, 100

    def x(percent: float) -> str:
        return f'{left + width * percent / 100:.1f}'

    def y(count: int) -> str:
        return f'{top + height * (1 - count / most):.1f}'

    description = (f'{_count_text(len(values))} in {HISTOGRAM_BINS} bins from 0 to 100 percent; '
                   f'mean {mean:.1f}, median {median:.1f}; the fullest bin, '
                   f'{edges[fullest]:.0f} to {edges[fullest + 1]:.0f}, holds {most}')
    bars = ''.join(f'<rect x="{x(edge)}" y="{y(count)}" width="{width / HISTOGRAM_BINS - 1:.1f}" '
                   f'height="{height * count / most:.1f}"/>'
                   for edge, count in zip(edges[:-1], counts, strict=True) if count)
    ticks = ''.join(f'<path d="M{x(percent)} {top + height}v4"/><text x="{x(percent)}" '
                    f'y="{top + height + 16}">{percent}</text>' for percent in (0, 25, 50, 75, 100))
    heights = ''.join(f'<path d="M{left - 4} {y(count)}h4"/><text class="count" x="{left - 7}" '
                      f'y="{y(count)}" dy="4">{count}</text>' for count in (0, most))
    marks = ''.join(f'<path class="{statistic}" d="M{x(value)} {top - 6}v{height + 6}"/>'
                    for statistic, value in (('mean', mean), ('median', median)))
    return (f'<figure><svg viewBox="0 0 250 146" role="img" '
            f'aria-labelledby="title_{metric} desc_{metric}">'
            f'<title id="title_{metric}">Histogram of {metric}, {escape(name)}</title>'
            f'<desc id="desc_{metric}">{description}</desc><g class="bars">{bars}</g>'
            f'<path d="M{left} {top}v{height}h{width}"/>{ticks}{heights}{marks}'
            f'<text x="{x(50)}" y="142">{metric} in percent</text>'
            f'<text transform="translate(12 {top + height / 2:.0f}) rotate(-90)">images</text>'
            f'</svg><figcaption><b>{metric}</b> <span><i class="mean"></i>mean {mean:.1f}</span> '
            f'<span><i class="median"></i>median {median:.1f}</span></figcaption></figure>')
