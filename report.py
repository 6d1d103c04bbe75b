"""report.html: the figures and all pictures of a test or of val, in one file to look through.

It holds everything it shows, so it can be opened from the disk, sent and kept; the page itself, its
style and its script are report_template.html.
"""
import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from dataset import read_picture
from metrics import FIGURES
from pictures import LABEL_COLOUR, SEGMENTATION_COLOUR

FEW = 200  # pictures: a report of more holds them smaller, so that its file stays below 30 MB a 1000
SIDE, SMALL_SIDE = 256, 192  # px, the longer side
QUALITY = 75  # of WebP
BINS = 20  # of a histogram, over 0 to 100 percent

FIGURE_NAMES = {'JA': 'Jaccard index', 'AC': 'accuracy', 'DI': 'Dice coefficient',
                'SE': 'sensitivity', 'SP': 'specificity'}
FIGURE_MEANINGS = {
    'JA': 'of all that is lesion in the segmentation or in the label, the share that is in both',
    'AC': 'the share of the picture’s pixels that are rightly called lesion or not lesion',
    'DI': 'what is in both, twice, as a share of the two lesions’ sizes together',
    'SE': 'the share of the label’s lesion that was found',
    'SP': 'the share of the label’s surroundings that was left alone'}
KIND_NAMES = {'stage_1_mask': 'stage-1 mask'}
KIND_MEANINGS = {
    'image': 'the picture as it was given',
    'heatmap': 'class attention, what makes the picture look diseased: blue low, red high, each '
               'stretched by its own range',
    'stage_1_mask': 'the soft mask that stage 2 started from',
    'mask': 'the soft mask: how surely each pixel is lesion, from black (not) to white (surely)',
    'segmentation': 'what counts as lesion (white), decided from the mask',
    'label': 'what should have been found (white), as people or the data set marked it',
    'translated': 'the picture as it would look if it were normal, as the network imagines it',
    'overlay': 'the picture with two outlines: segmentation yellow, label green'}
FLAT = {'segmentation', 'label'}  # pictures of two values: kept without loss, shown with crisp pixels


@dataclass(frozen=True)
class Entry:
    """One picture of the report."""

    name: str  # the file's stem
    pictures: dict[str, np.ndarray | Path]  # kind -> uint8 H×W or H×W×3, or a file; in the order shown
    figures: dict[str, float] | None = None  # JA AC DI SE SP in percent; None without a label


def write(path: Path, title: str, facts: dict[str, str], entries: Iterable[Entry]) -> None:
    """Write the report as one file; an earlier one stays as it is until the new one is whole.

    `facts` say what made the pictures: checkpoint, post-processing, … Entries are gone through once,
    one after the other, and only their reduced pictures are kept.
    """
    kept = list(_reduced(entries))
    kinds = _all_kinds(pictures for _, _, pictures in kept)
    rows = [figures for _, figures, _ in kept if figures]
    template = Path(__file__).with_name('report_template.html').read_text('utf-8')
    script = re.search('<script>(.*?)</script>', template, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    facts = {'pictures': f'{len(kept)}, {len(rows) or "none"} with a label', **facts}
    parts = {'script': [f'sha256-{digest}'],  # so that the browser runs no other, whatever names hold
             'title': [escape(title)],
             'facts': [_definitions(facts)],
             'figures': [_summary(rows)],
             'kinds': [_definitions({KIND_NAMES.get(kind, kind.replace('_', ' ')):
                                     KIND_MEANINGS.get(kind, '') for kind in kinds}),
                       _legend() if 'overlay' in kinds else ''],
             'data': _data(kinds, kept)}
    temporary = path.with_name(f'.{path.name}.part')
    try:
        with open(temporary, 'w', encoding='utf-8', errors='replace', newline='\n') as file:
            for place, text in enumerate(re.split(r'{{(\w+)}}', template)):
                file.writelines(parts[text] if place % 2 else [text])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------- pictures


def _reduced(entries) -> Iterator[tuple[str, dict | None, dict[str, bytes]]]:
    """(name, figures, pictures as WebP) of each entry; all of one size, which their number decides."""
    first = []
    for entry in entries:
        pictures = {kind: _webp(_open(kind, picture), kind, SMALL_SIDE if first is None else SIDE)
                    for kind, picture in entry.pictures.items()}
        if first is None:
            yield entry.name, entry.figures, pictures
            continue
        first.append((entry.name, entry.figures, pictures))
        if len(first) > FEW:
            yield from map(_smaller, first)
            first = None
    yield from first or ()


def _smaller(reduced):
    name, figures, pictures = reduced
    return name, figures, {kind: _webp(Image.open(BytesIO(picture)), kind, SMALL_SIDE)
                           for kind, picture in pictures.items()}


def _open(kind: str, picture: np.ndarray | Path) -> Image.Image:
    image = read_picture(picture) if isinstance(picture, Path) else Image.fromarray(picture)
    if kind == 'label':  # whose lesion may be 1
        image = image.point(lambda value, half=max(high for _, high in _ranges(image)) / 2:
                            255 if value > half else 0)
    return image


def _ranges(image):
    """(lowest, highest) value of each channel."""
    extrema = image.getextrema()
    return extrema if isinstance(extrema[0], tuple) else [extrema]


def _webp(image: Image.Image, kind: str, side: int) -> bytes:
    """At most side×side px."""
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2)
    file = BytesIO()
    image.save(file, 'WEBP', quality=QUALITY, lossless=kind in FLAT)
    return file.getvalue()


# ------------------------------------------------------------------------------------- the page


def _all_kinds(pictures: Iterable[dict[str, bytes]]) -> list[str]:
    """The kinds of all entries; one that the first entries lack stands behind what it came behind."""
    kinds = []
    for some in pictures:
        place = 0
        for kind in some:
            if kind not in kinds:
                kinds.insert(place, kind)
            place = kinds.index(kind) + 1
    return kinds


def _data(kinds: list[str], kept) -> Iterator[str]:
    """What the script reads, as JSON that no HTML can begin or end in. Figures come as text too,
    rounded as everywhere else in this program."""
    def text(values):
        return json.dumps(values).replace('<', '\\u003c')

    shown = [{'name': KIND_NAMES.get(kind, kind.replace('_', ' ')), 'flat': kind in FLAT,
              'meaning': KIND_MEANINGS.get(kind, '')} for kind in kinds]
    yield f'{{"figures": {text(FIGURES)}, "kinds": {text(shown)}, "entries": ['
    for number, (name, figures, pictures) in enumerate(kept):
        yield ',\n' if number else '\n'
        yield text({'name': name,
                    'JA': float(figures['JA']) if figures else None,
                    'figures': [f'{figures[figure]:.1f}' for figure in FIGURES] if figures else None,
                    'pictures': [base64.b64encode(pictures[kind]).decode() if kind in pictures
                                 else None for kind in kinds]})
    yield ']}'


def _definitions(items: dict[str, str]) -> str:
    return '<dl>' + ''.join(f'<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>'
                            for name, text in items.items()) + '</dl>'


def _legend() -> str:
    colours = (('segmentation', SEGMENTATION_COLOUR), ('label', LABEL_COLOUR))
    return '<p class="legend">Outlines of the overlay: ' + ', '.join(
        f'<span><i style="background: rgb{colour}"></i>{name}</span>' for name, colour in colours) + '</p>'


def _summary(rows: list[dict]) -> str:
    """The figures over pictures: a table, a histogram each and what they mean."""
    if not rows:
        return '<p>No picture has a label, so there are no figures.</p>'
    values = {figure: np.array([row[figure] for row in rows], float) for figure in FIGURES}
    head = ''.join(f'<th scope="col">{figure} <span>{FIGURE_NAMES[figure]}</span></th>'
                   for figure in FIGURES)
    body = ''.join(
        f'<tr><th scope="row">{name}</th>'
        + ''.join(f'<td>{summary(values[figure]):.1f}</td>' for figure in FIGURES) + '</tr>'
        for name, summary in (('mean', np.mean), ('median', np.median),
                              ('lowest', np.min), ('highest', np.max)))
    over = f'over {len(rows)} picture{"s" * (len(rows) > 1)} with a label, in percent'
    return (f'<div class="wide"><table><caption>Figures {over}</caption>'
            f'<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'
            '<div class="histograms">'
            + ''.join(_histogram(figure, values[figure]) for figure in FIGURES) + '</div>'
            '<details><summary>What the figures mean</summary>'
            + _definitions({f'{figure}, {FIGURE_NAMES[figure]}': FIGURE_MEANINGS[figure]
                            for figure in FIGURES}) + '</details>')


def _histogram(figure: str, values: np.ndarray) -> str:
    """An inline SVG: pictures by one figure in percent, mean and median marked."""
    counts, edges = np.histogram(values, BINS, (0, 100))
    mean, median, most = values.mean(), np.median(values), int(counts.max())
    left, top, width, height = 34, 10, 200, 100

    def x(percent):
        return f'{left + width * percent / 100:.1f}'

    def y(count):
        return f'{top + height * (1 - count / most):.1f}'

    fullest = int(counts.argmax())
    told = (f'{len(values)} picture{"s" * (len(values) > 1)} in {BINS} bins from 0 to 100 percent; mean '
            f'{mean:.1f}, median {median:.1f}; the fullest bin, {edges[fullest]:.0f} to '
            f'{edges[fullest + 1]:.0f}, holds {most}')
    bars = ''.join(
        f'<rect x="{x(edge)}" y="{y(count)}" width="{width / BINS - 1:.1f}" '
        f'height="{height * count / most:.1f}"/>'
        for edge, count in zip(edges, counts) if count)
    ticks = ''.join(f'<path d="M{x(percent)} {top + height}v4"/><text x="{x(percent)}" '
                    f'y="{top + height + 16}">{percent}</text>' for percent in (0, 25, 50, 75, 100))
    heights = ''.join(f'<path d="M{left - 4} {y(count)}h4"/><text class="count" x="{left - 7}" '
                      f'y="{y(count)}" dy="4">{count}</text>' for count in (0, most))
    marks = (f'<path class="mean" d="M{x(mean)} {top - 6}v{height + 6}"/>'
             f'<path class="median" d="M{x(median)} {top - 6}v{height + 6}"/>')
    return (f'<figure><svg viewBox="0 0 250 146" role="img" aria-labelledby="title_{figure} desc_{figure}">'
            f'<title id="title_{figure}">Histogram of {figure}, {FIGURE_NAMES[figure]}</title>'
            f'<desc id="desc_{figure}">{told}</desc>'
            f'<g class="bars">{bars}</g><path d="M{left} {top}v{height}h{width}"/>{ticks}{heights}{marks}'
            f'<text x="{x(50)}" y="142">{figure} in percent</text>'
            f'<text transform="translate(12 {top + height / 2:.0f}) rotate(-90)">pictures</text></svg>'
            f'<figcaption><b>{figure}</b> <span><i class="mean"></i>mean {mean:.1f}</span> '
            f'<span><i class="median"></i>median {median:.1f}</span></figcaption></figure>')
