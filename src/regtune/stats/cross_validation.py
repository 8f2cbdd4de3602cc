"""Cross-validated scores: what folds that share their training data do to a difference's uncertainty.

Every example is scored once by each seed, by a model that was trained on the other folds. Examples of one fold share
that model, and any two training sets share most of their examples, so examples are not the independent sample that the
bootstrap takes them for: whatever a fold's training set does to its model moves all examples of the fold together, in
every seed. A test that takes them for independent finds too much (Dietterich 1998, "Approximate statistical tests for
comparing supervised classification learning algorithms"), and no estimate from one cross-validation is unbiased
(Bengio and Grandvalet 2004, "No unbiased estimator of the variance of k-fold cross-validation"). The usual way to be
careful is the corrected variance of Nadeau and Bengio (2003, "Inference for the generalization error"), used for K
folds as by Bouckaert and Frank (2004):

    V = (1/K + n_test / n_train) var_k(d_k),    Student's t with K - 1 df

with d_k the difference on fold k. Here d_k is the mean over seeds (seeds have a part of their own in the bootstrap, and
folds are the same in all of them), n_test / n_train that of the largest fold, and V takes the place of the examples'
variance where it is larger. The examples' draws get t's tails in any case. Without any dependence the interval is then
about one and a half times as wide as it had to be; it is never narrower than that of independent examples.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from regtune.stats.bootstrap import Difference, Floats


def fold_variance(by_example: Floats, folds: npt.NDArray[np.intp]) -> float:
    """V of the mean difference: `by_example` [examples] are differences, means over seeds; `folds` [examples]."""
    names, sizes = np.unique(folds, return_counts=True)
    means = np.array([by_example[folds == name].mean() for name in names])
    largest = int(sizes.max())
    share = 1 / len(names) + largest / (len(folds) - largest)
    return float(share * means.var(ddof=1))


def allow_for_folds(
    difference: Difference, by_example: Floats, folds: npt.NDArray[np.intp] | None, *, seed: int
) -> Difference:
    """The difference with the examples' part widened as above; unchanged where there are no folds, or one alone.

    Args:
        difference: from examples taken as independent.
        by_example: each example's difference, the mean over seeds, [examples].
        folds: which fold each is in, [examples].
        seed: of the draws.
    """
    count = 0 if folds is None else len(np.unique(folds))
    if folds is None or count < 2:
        return difference
    own = difference.parts.example_variance
    variance = max(own, fold_variance(by_example, folds))
    if variance <= 0:
        return difference
    rng, draws = np.random.default_rng([seed, count]), difference.example_draws
    standard = draws / math.sqrt(own) if own > 0 else rng.standard_normal(len(draws))
    tails = np.sqrt((count - 1) / rng.chisquare(count - 1, len(draws)))
    widened = dataclasses.replace(
        difference,
        example_draws=math.sqrt(variance) * tails * standard,
        parts=dataclasses.replace(difference.parts, example_variance=variance, example_df=float(count - 1)),
        exact_p=None,
    )
    if difference.exact_p is None:
        return widened
    return dataclasses.replace(widened, exact_p=max(difference.exact_p, widened.p_value()))
