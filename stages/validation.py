"""Scoring the network in training: on labeled val images or, without any, without labels."""
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import checkpoint as checkpoints
import dataset
from config import Config
from inference import model_selection
from inference.evaluation import val_metrics
from inference.metrics import mean_metrics
from inference.plausibility import mask_warnings, small_mask
from inference.postprocess import PSEUDO_LABEL_RULES, REFINING_RULES, to_segmentation
from inference.soft_masks import SoftMask, config_of_network, mask_network, soft_masks
from runtime import distributed
from stages.base import Stage
from stages.pseudo_labels import PseudoLabeler
from utils import UserError, evenly_spaced

LEAST_FILLED = 50  # percent of pseudo-labels; where fewer hold a lesion a warning is due
SCORED_IMAGES = 32  # of either folder that the label-free score looks at


class Score(NamedTuple):
    """The network in training at one iteration."""

    value: float  # JA on val or the label-free score, percent
    metrics: dict[str, float] | None  # on val, percent; None without labels
    text: str  # what was scored by which rule on which images


class Validation:
    """Scores a stage's network. `soft_masks` are the teacher's by part (train, val) and image stem,
    None where there are none."""

    def __init__(self, config: Config, device: torch.device, images: dict[str, list[Path]],
                 cases: list[dataset.Case], soft_masks: dict[str, Any]) -> None:
        """`images` are the training images of A and B, `cases` the labeled ones of val."""
        self.config, self.device, self.cases, self.soft_masks = config, device, cases, soft_masks
        self.disease = evenly_spaced(images['A'], SCORED_IMAGES)
        self.normal = evenly_spaced(images['B'], SCORED_IMAGES)
        self.label_free: model_selection.LabelFreeScore | None = None

    def prepare_label_free_score(self, teacher: PseudoLabeler | None) -> None:
        """Without val labels a localizer, if there is one, tells which checkpoints are good."""
        config = self.config
        try:
            localizer = (teacher.checkpoint if config.trained_by_localizer
                         else checkpoints.read(checkpoints.choose_for_test(
                             config.result_folder, config.dataset, stage=0)))
        except UserError:
            print('no val labels and no localizer: the newest checkpoint counts as the best')
            return
        of_localizer = config_of_network(localizer, config)
        self.label_free = model_selection.LabelFreeScore(
            mask_network(localizer, of_localizer, self.device), of_localizer.size, self.device)
        self.label_free.learn_normal(self.normal)

    def with_pseudo_label_rule(self) -> Config:
        """The Config with the rule that suits the teacher's soft masks best: by the labels of val
        or, without any, by the label-free score. It belongs to the run from now on."""
        config = self.config
        if self.cases:
            scores = model_selection.score_rules_on_val(
                REFINING_RULES, self.cases, self.soft_masks['val'], config.keep_components)
            scored_by = f'val JA of {len(self.cases)} labeled images, percent'
        elif self.label_free:
            scores = model_selection.score_rules(
                REFINING_RULES, self.disease, self.soft_masks['train'], self.label_free,
                config.keep_components)
            scored_by = f'label-free score of {self._label_free_range()}'
        else:  # then color_edges
            return config
        best = max(scores, key=scores.get)
        self.config = replace(config, pseudo_label_rule=best)
        print(f'pseudo-labels: {best} ({scored_by}: '
              + ', '.join(f'{rule} {score:.1f}' for rule, score in scores.items()) + ')')
        return self.config

    def teacher_warnings(self) -> list[str]:
        """What is wrong with the teacher's soft masks of disease images, a line each."""
        masks, config = self.soft_masks['train'], self.config
        warnings = mask_warnings([small_mask(np.asarray(dataset.read_image(masks[path.stem], 1)))
                                  for path in self.disease], "teacher's soft masks")
        if config.takes_conditioning:  # then nothing is made of them
            return warnings
        filled = model_selection.score_rules(
            ['clean'], self.disease, masks, lambda _, label: 100 * label.any(),
            config.keep_components)['clean']
        if filled >= LEAST_FILLED:
            return warnings
        empty = round(len(self.disease) * (1 - filled / 100))
        return [f'warning: {empty} of {len(self.disease)} pseudo-labels looked at are empty, and '
                'teach to find nothing: the soft masks in '
                f'{masks[self.disease[0].stem].parent} show no lesion there; train the stage '
                'before anew, with another --seed or a larger --iteration']

    def score(self, stage: Stage) -> Score | None:
        """Of the network as it is now; None where nothing can tell."""
        if not self.cases and not self.label_free:
            return None
        stage.networks.eval()
        return self._on_val(stage) if self.cases else self._without_labels(stage)

    def _on_val(self, stage: Stage) -> Score:
        """Where the user names no rule of post-processing: by the best of those for pseudo-labels
        (published: Otsu's)."""
        config = self.config
        rules = [config.postprocess]
        if config.postprocess in ('auto', 'none'):
            rules = ['otsu'] if config.recipe == 'published' else PSEUDO_LABEL_RULES
        rows = val_metrics(stage.mask_network, self.cases, config, self.device,
                           self._conditioning('val'), rules)
        means = dict(zip(rules, map(mean_metrics, zip(*rows, strict=True)), strict=True))
        rule = max(means, key=lambda rule: means[rule]['JA'])
        text = 'val ' + ' '.join(f'{name} {value:.1f}' for name, value in means[rule].items())
        best_of = f', the best of {len(rules)} rules,' if len(rules) > 1 else ''
        return Score(means[rule]['JA'], means[rule], f'{text} percent, by {rule}{best_of} on '
                     f'{len(self.cases)} labeled images')

    def _without_labels(self, stage: Stage) -> Score:
        config = self.config

        def score_of(soft: SoftMask) -> float:
            image = np.asarray(dataset.read_image(soft.path))
            lesion = to_segmentation(soft.mask, config.default_rule, image, 1, config)
            return self.label_free(soft.path, lesion)

        scores = soft_masks(stage.mask_network, distributed.shard(self.disease), config,
                            self.device, self._conditioning('train'), finish=score_of)
        value = float(np.mean(distributed.gather(list(scores))))
        return Score(value, None, f'label-free score {value:.1f} of {self._label_free_range()}, by '
                     f'{config.default_rule}')

    def _label_free_range(self) -> str:
        return f'−100 to 100 on {len(self.disease)} images of trainA, no labels'

    def _conditioning(self, part: str) -> dict[str, Path] | None:
        """The teacher's soft masks of train or val, where the network takes them."""
        return self.soft_masks[part] if self.config.takes_conditioning else None
