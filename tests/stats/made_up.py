"""Metrics that are no plain mean, and made-up scores for them."""

import numpy as np
from scipy import stats

from regtune.interfaces import Metric
from regtune.stats import ArmScores, compare
from regtune.stats.scores import SCORE

ENTITY_F1 = Metric(
    name="entity_f1",
    title="entity F1",
    columns=("tp", "fp", "fn"),
    value=lambda m: 2 * m[..., 0] / (2 * m[..., 0] + m[..., 1] + m[..., 2]),
)
PERPLEXITY = Metric(
    name="perplexity",
    title="perplexity",
    columns=("nats", "tokens"),
    value=lambda m: np.exp(m[..., 0] / m[..., 1]),
    higher_is_better=False,
    scale=1.0,
    unit="",
    bounds=(1.0, np.inf),
    delta=0.2,
)


def entities(rng, seeds, examples, shift=0.0, *, seed_sd=0.0, places=slice(None)):
    """Counts of found, false and missed entities; how hard a sentence is does not depend on the run."""
    gold = (1 + np.random.default_rng(0).poisson(2, examples))[places]
    hard = np.random.default_rng(1).normal(0, 1, examples)[places]
    shape = (seeds, len(hard))
    latent = shift + seed_sd * rng.standard_normal((seeds, 1)) + hard + 0.7 * rng.standard_normal(shape)
    found = rng.binomial(gold, stats.norm.cdf(latent))
    return np.stack([found, rng.poisson(0.5, shape), gold - found], axis=-1).astype(float)


def texts(rng, seeds, examples, nats=2.0, *, seed_sd=0.0, places=slice(None)):
    """Nats and tokens of texts of very different length."""
    length = (5 + np.random.default_rng(2).geometric(0.02, examples))[places]
    hard = np.random.default_rng(3).normal(0, 0.4, examples)[places]
    each = nats + hard + seed_sd * rng.standard_normal((seeds, 1)) + 0.15 * rng.standard_normal((seeds, len(hard)))
    return np.stack([each * length, np.broadcast_to(length, each.shape)], axis=-1)


def compare_runs(baseline, run, metric=SCORE, **settings):
    """Two single runs, given as their scores alone."""
    base, arm = (
        ArmScores(scores=np.asarray(scores, dtype=float)[None], metric=metric, name=name)
        for scores, name in ((baseline, "baseline"), (run, "run"))
    )
    return compare(base, {"run": arm}, **settings)[0]
