"""What outlier tokens still know: linear probes of local and of global information, beside ordinary tokens.

After Darcet 2024 (arXiv 2309.16588, section 2.1), who found in vision models that high-norm tokens know less of their
place and content than others, and more of the whole image. Here: which token stands there (of the frequent ones) and in
which part of the text (local), and which text, article or label it belongs to (global). Of a patch: its place, the
quarter of the image that it is in, and its pixels (how much of their variance a ridge regression explains, R²).

Outlier and ordinary tokens get a probe each, with equally many tokens, so that their accuracies can be compared. The
probe is a ridge classifier on standardised states (scikit-learn), five-fold held out. Folds keep a text
together where that is possible; where the label *is* the text, held out are other tokens of the same texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor, nn

from regtune.analyses.artefacts.artefacts import content_places
from regtune.analyses.artefacts.sites import SITES, BlockStates, visit_texts
from regtune.analyses.batches import with_words
from regtune.analyses.parts import mean_interval
from regtune.errors import ConfigError, MissingExtraError, unknown_name
from regtune.interfaces import Batch
from regtune.registers.surgery import backbone_of

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
    """Their ids; of patches their places."""
    part: Int[np.ndarray, " tokens"]
    """In which of `PARTS` equal parts of its text's content each stands; of patches, in which quarter of the image."""
    pixels: Float[np.ndarray, "tokens values"]
    """Of patches what they show, `[tokens, 0]` of texts."""
    likeness: Float[np.ndarray, " tokens"]
    """Of patches the mean cosine of their embedding, before positions, to those around it; NaN of texts."""
    example: Int[np.ndarray, " tokens"]
    outlier: Bool[np.ndarray, " tokens"]

    def only(self, kept: np.ndarray) -> TokenStates:
        """Some of the tokens, by place or by a mask."""
        return TokenStates(**{each.name: getattr(self, each.name)[kept] for each in dataclasses.fields(self)})


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One probe's held-out accuracy, or why there is none."""

    information: str
    """`token`, `position`, `part`, `pixels` (local) or the name of the label (global)."""
    tokens: str
    """`outlier` or `ordinary`."""
    count: int
    """Tokens that the probe was trained and tested on."""
    classes: int
    held_out: str
    """`texts` (folds keep each together), or `tokens` where the label is the text."""
    accuracy: float | None = None
    """Of `pixels` R²."""
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
) -> TokenStates:
    """The content tokens of one place whose norm ‖x‖₂ is above a limit, and a random sample of the others."""
    if site not in SITES:
        raise unknown_name("site", site, SITES)
    texts: list[dict[str, np.ndarray]] = []
    ids: Tensor
    patches: Mapping[str, np.ndarray] = {}
    depth = 0

    def visit(states: BlockStates, row: int, classes: Int8[Tensor, " total"]) -> None:
        nonlocal depth
        depth = max(depth, states.layer + 1)
        if states.layer == layer:
            places = content_places(classes)
            chosen = states.sites[site][row][places].float()
            extra = len(classes) - ids.shape[1]
            count = len(places)
            known = {
                "token": ids[row][places.cpu() - extra].numpy(),
                "part": np.arange(count) * PARTS // count,
                "pixels": np.zeros((count, 0), dtype=np.float32),
                "likeness": np.full(count, np.nan, dtype=np.float32),
            }
            known |= {name: values[row] for name, values in patches.items()}
            texts.append({"states": chosen.cpu().numpy(), "norms": chosen.norm(dim=1).cpu().numpy(), **known})

    examples: list[int] = []
    for batch in with_words(batches):  # one by one, so that the ids are those of what is seen
        ids = batch.get("input_ids", batch["token_classes"])
        patches = patches_of(model, batch) if "pixel_values" in batch else {}
        examples.extend(visit_texts(model, [batch], visit))
    if not texts:
        raise ConfigError(f"There is no layer {layer} with content in these texts; the model has {depth}.")
    columns = {name: np.concatenate([text[name] for text in texts]) for name in texts[0]}
    outlier = columns["norms"] > norm_above
    example = np.repeat(np.array(examples), [len(text["norms"]) for text in texts])
    ordinary = np.random.default_rng(0).permutation(np.flatnonzero(~outlier))[:most_ordinary]
    chosen = np.sort(np.concatenate([np.flatnonzero(outlier), ordinary]))
    return TokenStates(**columns, example=example, outlier=outlier).only(chosen)


def patches_of(model: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    """What is known of the patches of a batch of images, each `[rows, patches, ...]`, as `TokenStates` names it."""
    pixels, (rows, columns) = batch["pixel_values"], batch["patch_grid"][0].tolist()
    height, width = pixels.shape[2] // rows, pixels.shape[3] // columns
    cut = pixels.unfold(2, height, height).unfold(3, width, width)
    shown = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    table = backbone_of(model).get_input_embeddings()
    with torch.inference_mode():
        weight = next(table.parameters())
        words = table(pixels.to(weight)).float().cpu()
    words = words.flatten(2).transpose(1, 2) if words.dim() == 4 else words
    unit = nn.functional.normalize(words, dim=-1).reshape(len(words), rows, columns, -1)
    sums, counts = torch.zeros(2, len(pixels), rows, columns)
    for down, right in ((0, 1), (1, 0)):
        first = (slice(None), slice(rows - down), slice(columns - right))
        second = (slice(None), slice(down, None), slice(right, None))
        near = (unit[first] * unit[second]).sum(-1)
        for side in (first, second):
            sums[side] += near
            counts[side] += 1
    place = torch.arange(rows * columns)
    quarter = 2 * (2 * (place // columns) // rows) + 2 * (place % columns) // columns
    return {
        "token": place.expand(len(pixels), -1).numpy(),
        "part": quarter.expand(len(pixels), -1).numpy(),
        "pixels": shown.float().numpy(),
        "likeness": (sums / counts.clamp(min=1)).flatten(1).numpy(),
    }


def likeness_of(tokens: TokenStates) -> dict[str, dict[str, Any]]:
    """How like their neighbours outlier and ordinary patches are at the input: number, mean cosine, interval.

    Means over images, with a bootstrap interval over images where there are two or more.
    """
    found = {}
    for kind, chosen in {"outlier": tokens.outlier, "ordinary": ~tokens.outlier}.items():
        if chosen.any():
            images = np.unique(tokens.example[chosen])
            means = [float(tokens.likeness[chosen & (tokens.example == image)].mean()) for image in images]
            found[kind] = {"count": int(chosen.sum()), **vars(mean_interval(np.array(means, dtype=np.float64)))}
    return found


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
    images = tokens.pixels.shape[1] > 0
    own = "position" if images else "token"
    asked = {own: tokens.token, "part": tokens.part}
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
            grouped = name in (own, "part") or min(spread, default=0) >= FOLDS  # texts enough to hold some out
            probe = Probe(
                information=name,
                tokens=kind,
                count=len(chosen),
                classes=len(np.unique(label[chosen])),
                held_out="texts" if grouped else "tokens",
            )
            found.append(_probed(probe, tokens.only(chosen), label[chosen], resamples, seed))
    return found + (_pixel_probes(tokens, resamples, seed) if images else [])


def _pixel_probes(tokens: TokenStates, resamples: int, seed: int) -> list[Probe]:
    """How much of their pixels' variance outlier and ordinary patches tell; as many of each."""
    kinds = {"outlier": np.flatnonzero(tokens.outlier), "ordinary": np.flatnonzero(~tokens.outlier)}
    size = max(LEAST_TOKENS, min(map(len, kinds.values())))
    found: list[Probe] = []
    for kind, of_kind in kinds.items():
        chosen = tokens.only(np.random.default_rng(seed).permutation(of_kind)[:size])
        count, images = len(chosen.norms), len(np.unique(chosen.example))
        probe = Probe(information="pixels", tokens=kind, count=count, classes=0, held_out="texts")
        if count < LEAST_TOKENS or images < FOLDS:
            reason = f"{count} {kind} patches of {images} images; {LEAST_TOKENS} of {FOLDS} are needed"
            found.append(dataclasses.replace(probe, reason=reason))
            continue
        lost, whole = held_out_pixels(chosen.states, chosen.pixels, chosen.example, seed=seed)
        _, place = np.unique(chosen.example, return_inverse=True)
        losses, sizes = np.bincount(place, weights=lost), np.bincount(place, weights=whole)
        drawn = np.random.default_rng(seed).integers(0, images, size=(resamples, images))
        low, high = np.quantile(1 - losses[drawn].sum(1) / sizes[drawn].sum(1).clip(1e-30), (0.025, 0.975))
        share = 1 - float(lost.sum()) / max(float(whole.sum()), 1e-30)
        found.append(dataclasses.replace(probe, accuracy=share, low=float(low), high=float(high), chance=0.0))
    return found


def held_out_pixels(
    states: Float[np.ndarray, "tokens hidden"],
    pixels: Float[np.ndarray, "tokens values"],
    images: Int[np.ndarray, " tokens"],
    *,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " tokens"], Float[np.ndarray, " tokens"]]:
    """For each patch the squared error of a ridge regression that wasn't trained on its image, and that of the mean."""
    try:
        from sklearn.linear_model import Ridge
        from sklearn.model_selection import GroupKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "analysis", "Probing tokens") from error
    folds, wanted = GroupKFold(FOLDS, shuffle=True, random_state=seed), pixels.astype(np.float64)
    probe = make_pipeline(StandardScaler(), Ridge(alpha=_ALPHA))
    said = cross_val_predict(probe, states.astype(np.float64), wanted, groups=images, cv=folds)
    lost: np.ndarray = np.square(wanted - said).sum(1)
    whole: np.ndarray = np.square(wanted - wanted.mean(0)).sum(1)
    return lost, whole


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
