"""How well rankings of different tasks and seeds agree: the first two propositions of the paper."""

from collections.abc import Mapping

import numpy as np
from scipy.stats import spearmanr

from ..selection import GradientRecord, LayerRanking


def layer_agreement(records: Mapping[str, GradientRecord], importance: str = "rgn") -> np.ndarray:
    """Spearman's rank correlation of the layers' scores between all runs, `[runs, runs]`.

    Args:
        records: By name of the run, what was measured.
        importance: The score.
    """
    return _matrix([list(record.totals[importance].values()) for record in records.values()])


def channel_agreement(records: Mapping[str, GradientRecord]) -> np.ndarray:
    """The same of the norms of the channels within a layer, averaged over the layers, `[runs, runs]`."""
    first, *_ = records.values()
    layers = [row.name for row in first.costs if row.channels > 2]
    by_layer = [_matrix([record.norms[name].numpy() for record in records.values()]) for name in layers]
    return np.nanmean(by_layer, axis=0)


def common_ranking(records: Mapping[str, GradientRecord]) -> LayerRanking:
    """One ranking of all runs: the mean of their shares of the total score."""
    rankings = [record.ranking() for record in records.values()]
    scores = {}
    for kind in rankings[0].scores:
        totals = [sum(ranking.scores[kind].values()) or 1.0 for ranking in rankings]
        scores[kind] = {
            name: float(np.mean([r.scores[kind][name] / total for r, total in zip(rankings, totals, strict=True)]))
            for name in rankings[0].scores[kind]
        }
    return LayerRanking(scores, rankings[0].shapes, {"runs": list(records)})


def _matrix(rows: list) -> np.ndarray:
    """Correlation of every row with every other."""
    if len(rows) == 1:
        return np.ones((1, 1))
    correlation = spearmanr(np.array(rows), axis=1).statistic
    return np.array([[1.0, correlation], [correlation, 1.0]]) if len(rows) == 2 else correlation
