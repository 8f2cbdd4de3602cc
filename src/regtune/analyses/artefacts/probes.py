"""What outlier tokens still know: linear probes of local and of global information, beside ordinary tokens.

After Darcet 2024 (arXiv 2309.16588, section 2.1), who found in vision models that high-norm tokens know less of their
place and content than others, and more of the whole image. Here: which token stands there (of the frequent ones) and in
which part of the text (local), and which text, article or label it belongs to (global).

Outlier and ordinary tokens get a probe each, with equally many tokens, so that their accuracies can be compared. The
probe is a ridge classifier on standardised states (scikit-learn), five-fold held out. Folds keep a text
together where that is possible; where the label *is* the text, held out are other tokens of the same texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor, nn

from regtune.analyses.artefacts.artefacts import content_places
from regtune.analyses.artefacts.sites import SITES, BlockStates, visit_texts
from regtune.analyses.batches import with_words
from regtune.errors import ConfigError, MissingExtraError, unknown_name
from regtune.interfaces import Batch

LEAST_TOKENS = 60
"""Fewer tokens than this, in classes that occur often enough, give no accuracy worth printing."""
FOLDS = 5
PARTS = 4
"""Into how many parts a text is cut for "which part of the text"."""
_FREQUENT = 20
_ALPHA = 10.0


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenStates:
    """Tokens of one place (layer and site) and what a probe may be asked about them."""

    states: Float[np.ndarray, "tokens hidden"]
    norms: Float[np.ndarray, " tokens"]
    token: Int[np.ndarray, " tokens"]
    """Their ids."""
    part: Int[np.ndarray, " tokens"]
    """In which of `PARTS` equal parts of its text's content each stands."""
    example: Int[np.ndarray, " tokens"]
    outlier: Bool[np.ndarray, " tokens"]

    def only(self, kept: np.ndarray) -> TokenStates:
        """Some of the tokens, by place or by a mask."""
        return TokenStates(**{each.name: getattr(self, each.name)[kept] for each in dataclasses.fields(self)})


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One probe's held-out accuracy, or why there is none."""

    information: str
    """`token`, `part` (local) or the name of the label (global)."""
    tokens: str
    """`outlier` or `ordinary`."""
    count: int
    """Tokens that the probe was trained and tested on."""
    classes: int
    held_out: str
    """`texts` (folds keep each together), or `tokens` where the label is the text."""
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    """Interval of the accuracy: bootstrap over texts, 95 %."""
    chance: float | None = None
    """Share of the most frequent class: what guessing gets."""
    reason: str = ""
    """Why there is no number."""


def token_states(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    layer: int,
    site: str = "norm_input",
    norm_above: float,
    most_ordinary: int = 4000,
    seed: int = 0,
) -> TokenStates:
    """The content tokens of one place whose norm ‖x‖₂ is above a limit, and a random sample of the others."""
    if site not in SITES:
        raise unknown_name("site", site, SITES)
    texts: list[dict[str, np.ndarray]] = []
    ids: Tensor
    depth = 0

    def visit(states: BlockStates, row: int, classes: Int8[Tensor, " total"]) -> None:
        nonlocal depth
        depth = max(depth, states.layer + 1)
        if states.layer == layer:
            places = content_places(classes)
            chosen = states.sites[site][row][places].float()
            extra = len(classes) - ids.shape[1]
            texts.append(
                {
                    "states": chosen.cpu().numpy(),
                    "norms": chosen.norm(dim=1).cpu().numpy(),
                    "token": ids[row][places.cpu() - extra].numpy(),
                    "part": np.arange(len(places)) * PARTS // len(places),
                }
            )

    examples: list[int] = []
    for batch in batches:  # one by one, so that the ids are those of what is seen
        worded = with_words(batch)
        if worded is not None:
            ids = worded["input_ids"]
            examples.extend(visit_texts(model, [worded], visit))
    if not texts:
        raise ConfigError(f"There is no layer {layer} with content in these texts; the model has {depth}.")
    columns = {name: np.concatenate([text[name] for text in texts]) for name in texts[0]}
    outlier = columns["norms"] > norm_above
    example = np.repeat(np.array(examples), [len(text["norms"]) for text in texts])
    ordinary = np.random.default_rng(seed).permutation(np.flatnonzero(~outlier))[:most_ordinary]
    chosen = np.sort(np.concatenate([np.flatnonzero(outlier), ordinary]))
    return TokenStates(**columns, example=example, outlier=outlier).only(chosen)


def probe_tokens(
    tokens: TokenStates,
    *,
    labels: Mapping[str, Sequence[int]] | None = None,
    texts: Sequence[int] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Probe]:
    """Probes outlier and ordinary tokens for what they know.

    Args:
        tokens: from `token_states`.
        labels: global information by name, for example `{"article": …}`: a class for each *example*.
        texts: a number for each example, the same for those with the same text (questions about one passage): of
            these only the first is probed, since the probe would else be tested on what it was trained on.
    """
    if texts is not None:
        _, first = np.unique(np.asarray(texts), return_index=True)
        tokens = tokens.only(np.isin(tokens.example, first))
    asked = {"token": tokens.token, "part": tokens.part}
    asked |= {name: np.asarray(classes)[tokens.example] for name, classes in (labels or {}).items()}
    found = []
    for name, label in asked.items():
        kinds = {"outlier": np.flatnonzero(tokens.outlier), "ordinary": np.flatnonzero(~tokens.outlier)}
        size = min(len(_frequent(of_kind, label)) for of_kind in kinds.values())
        most = max(2, min(_FREQUENT, size // (4 * FOLDS)))  # so few classes that each has tokens enough
        kinds = {kind: _frequent(of_kind, label, most) for kind, of_kind in kinds.items()}
        size = max(LEAST_TOKENS, min(map(len, kinds.values())))
        for kind, of_kind in kinds.items():
            chosen = _frequent(np.random.default_rng(seed).permutation(of_kind)[:size], label, most)
            spread = [
                len(np.unique(tokens.example[chosen][label[chosen] == each])) for each in np.unique(label[chosen])
            ]
            grouped = name in ("token", "part") or min(spread, default=0) >= FOLDS  # texts enough to hold some out
            probe = Probe(
                information=name,
                tokens=kind,
                count=len(chosen),
                classes=len(np.unique(label[chosen])),
                held_out="texts" if grouped else "tokens",
            )
            found.append(_probed(probe, tokens.only(chosen), label[chosen], resamples, seed))
    return found


def _frequent(members: np.ndarray, label: np.ndarray, most: int = _FREQUENT) -> np.ndarray:
    """The members whose class occurs at least twice a fold; of more than `most` classes the most frequent."""
    classes, counts = np.unique(label[members], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    kept: np.ndarray = members[np.isin(label[members], classes[order][counts[order] >= 2 * FOLDS])]
    return kept


def _probed(probe: Probe, tokens: TokenStates, label: np.ndarray, resamples: int, seed: int) -> Probe:
    """The probe with its accuracy, or with the reason why there is none."""
    grouped, texts = probe.held_out == "texts", tokens.example
    if probe.count < LEAST_TOKENS or probe.classes < 2:
        reason = (
            f"{probe.count} {probe.tokens} tokens in {probe.classes} classes that occur {2 * FOLDS} times; "
            f"{LEAST_TOKENS} tokens in 2 classes are needed"
        )
        return dataclasses.replace(probe, reason=reason)
    if grouped and len(np.unique(texts)) < FOLDS:
        reason = f"they come from {len(np.unique(texts))} texts; {FOLDS} are needed to hold some out"
        return dataclasses.replace(probe, reason=reason)
    right = held_out_hits(tokens.states, label, texts if grouped else None, seed=seed)
    _, place = np.unique(texts, return_inverse=True)  # the tokens of one text are no independent draws
    hits, counts = np.bincount(place, weights=right), np.bincount(place).astype(np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(counts), size=(resamples, len(counts)))
    low, high = np.quantile(hits[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))
    chance = float(np.unique(label, return_counts=True)[1].max() / len(label))
    return dataclasses.replace(probe, accuracy=float(right.mean()), low=float(low), high=float(high), chance=chance)


def held_out_hits(
    states: Float[np.ndarray, "tokens hidden"],
    labels: Int[np.ndarray, " tokens"],
    texts: Int[np.ndarray, " tokens"] | None,
    *,
    seed: int = 0,
) -> Bool[np.ndarray, " tokens"]:
    """For each token whether a linear probe that wasn't trained on it (or its text) names its label.

    Tokens with the same number in `texts` stay together; None parts them at random, each class evenly.
    """
    try:
        from sklearn.linear_model import RidgeClassifier
        from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "analysis", "Probing tokens") from error
    folds = (StratifiedKFold if texts is None else GroupKFold)(FOLDS, shuffle=True, random_state=seed)
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=_ALPHA))
    said = cross_val_predict(probe, states.astype(np.float64), labels, groups=texts, cv=folds)
    hits: Bool[np.ndarray, " tokens"] = said == labels
    return hits
