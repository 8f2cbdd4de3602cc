"""Perturbed text: `noise:keyboard=0.1:FILE` names a data set with a typing error in a tenth of its words.

It knows no task: a task says which texts may change and what in them has to stay (`Task.perturb`). Every example's
changes are drawn from the seed and its id, so that all arms of a sweep read the same text; what changes at one strength
changes at every higher one, too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from unicodedata import category

from regtune.errors import ConfigError, DataError, shown, unknown_name

PREFIX = "noise:"
DISTRACTORS = "distractors"
Span = tuple[int, int]
"""Half-open range of characters."""
Draws = tuple[float, float]
"""What a change of a word is chosen by, each in [0, 1)."""

_FORM = "noise:KIND=STRENGTH[,KIND=STRENGTH ...][,in=FIELD+FIELD][,seed=NUMBER]:NAME"
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_SIGNS = ",.;:!?"
_FILLERS = ("um", "uh", "er", "well", "like")
_SHORT = 3
_WORD = re.compile(r"(\S+)(\s*)")
_SENTENCE = re.compile(r"(?<=[.!?。！？؟।])\s+(?=\S)")
_ALIKE = (
    "accept except,affect effect,aisle isle,allowed aloud,are our,ate eight,bare bear,base bass,be bee,board bored,"
    "born borne,brake break,buy by bye,capital capitol,ceiling sealing,cell sell,cent scent sent,cereal serial,"
    "cite sight site,coarse course,council counsel,days daze,dear deer,dew due do,die dye,fair fare,feat feet,"
    "find fined,flour flower,for four,forth fourth,grate great,hair hare,hear here,heard herd,hi high,him hymn,"
    "hole whole,hour our,i eye,in inn,is his,its it's,knew new,knight night,know no,lead led,least leased,"
    "loan lone,made maid,mail male,main mane,many mini,meat meet,miner minor,morning mourning,none nun,of off,one won,"
    "pair pear,passed past,patience patients,peace piece,peak peek,plain plane,pole poll,poor pour,pray prey,"
    "prince prints,principal principle,rain reign,raise rays,read red,right write,road rode,role roll,root route,"
    "sail sale,scene seen,sea see,seas seize,sew so,some sum,son sun,stair stare,steal steel,tail tale,than then,"
    "their there they're,threw through,throne thrown,tide tied,to too two,vary very,waist waste,wait weight,war wore,"
    "ware wear where,warn worn,watt what,way weigh,weak week,weather whether,which witch,who's whose,win when,"
    "wood would,world whirled,you're your"
)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What is done to texts."""

    strengths: tuple[tuple[str, float], ...]
    """Kinds in the order in which they are applied, each with its strength in [0, 1]: the share of words that change
    or, of `distractors` (always the first), of sentences that get another one beside them. 0 changes nothing."""
    fields: tuple[str, ...] = ()
    """Which texts of an example; empty stands for all that its task lets change."""
    seed: int = 0


def split_name(name: str) -> tuple[str, str]:
    """`noise:keyboard=0.1:en.json` in its parts, `("keyboard=0.1", "en.json")`; no first part for any other name."""
    if not name.startswith(PREFIX):
        return "", name
    spec, _, plain = name.removeprefix(PREFIX).partition(":")
    return spec, plain


def copy_id(identifier: str, name: str) -> str:
    """The id of an example's perturbed copy, where it stands beside the example itself."""
    return f"{identifier}#{PREFIX}{split_name(name)[0]}"


def split_copy(identifier: str) -> str:
    """The id of the example that an id, of it or of a perturbed copy, belongs to."""
    return identifier.partition(f"#{PREFIX}")[0]


def noise_of(name: str) -> tuple[Noise | None, str]:
    """The noise that a data set's name asks for, and the name of the set itself.

    Raises:
        ConfigError: no such kind, a strength outside [0, 1], or a name that isn't of that form.
    """
    spec, plain = split_name(name)
    if not name.startswith(PREFIX):
        return None, name
    if not spec or not plain or plain.startswith(PREFIX):
        raise ConfigError(f"{shown(name)} must be written {_FORM}, all kinds in one; kinds: {', '.join(NAMES)}.")
    given: dict[str, str] = {}
    for part in spec.split(","):
        key, _, value = part.partition("=")
        if key not in (*NAMES, "in", "seed"):
            raise unknown_name(f"kind of noise in {shown(name)}:", key, NAMES)
        if key in given or not value:
            raise ConfigError(f"{shown(name)}: {shown(part)} must be {key}=VALUE, once. The form is {_FORM}.")
        given[key] = value
    fields = tuple(given.pop("in").split("+")) if "in" in given else ()
    seed = given.pop("seed", "0")
    if not seed.isdecimal():
        raise ConfigError(f"{shown(name)}: seed={seed} must be a whole number, for example seed=1.")
    kinds = sorted(given, key=lambda kind: kind != DISTRACTORS)  # the sentences that are put in get the rest, too
    strengths = tuple((kind, _strength(kind, given[kind], name)) for kind in kinds)
    return Noise(strengths=strengths, fields=fields, seed=int(seed)), plain


def _strength(kind: str, value: str, name: str) -> float:
    try:
        strength = float(value)
    except ValueError:
        strength = -1.0
    if not 0 <= strength <= 1:
        raise ConfigError(f"{shown(name)}: {kind}={value} must be a number from 0 to 1, for example {kind}=0.1.")
    return strength


@dataclass(kw_only=True)
class Change:
    """Perturbs the texts of examples, one after the other, and counts what it did."""

    noise: Noise
    sentences: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    """Field to the sentences that may be put into it, each behind the text that it is from."""
    id: str = ""
    """Of the example whose texts come next."""
    changed: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    """By kind: words (sentences) that changed, and all there were."""
    own: list[Span] = field(default_factory=list)
    """Where the words are, in the text that was changed last, that stood in it before and are as they were."""

    def __call__(self, name: str, text: str, keep: Sequence[Span] = ()) -> tuple[str, list[Span]]:
        """One text of the example, perturbed.

        Args:
            name: its field; one that the noise isn't for comes back as it is.
            text: the text.
            keep: parts that have to stay as they are.

        Returns:
            The new text, and where those parts are in it, in the same order.
        """
        spans, self.own = list(keep), words_of(text)
        if self.noise.fields and name not in self.noise.fields:
            return text, spans
        for kind, strength in self.noise.strengths:
            random = Random(f"{self.noise.seed}:{kind}:{name}:{self.id}")
            if kind != DISTRACTORS:
                text, spans, self.own, words, changed = _by_words(text, spans, self.own, strength, KINDS[kind], random)
            elif name in self.sentences:
                pool = self.sentences[name]
                text, spans, self.own, words, changed = _distracted(text, spans, self.own, strength, pool, random)
            else:
                continue
            self.seen[kind] += words
            self.changed[kind] += changed
        return text, spans

    @property
    def note(self) -> str:
        """What was done, for a person."""
        told = [
            f"{kind} changed {self.changed[kind]:,} of {count:,} words"
            for kind, count in self.seen.items()
            if kind != DISTRACTORS
        ]
        if DISTRACTORS in self.seen:
            told.append(f"{self.changed[DISTRACTORS]:,} sentences beside {self.seen[DISTRACTORS]:,}")
        return f"noise: {'; '.join(told) or 'nothing changed'}"


def words_of(text: str) -> list[Span]:
    """Where its words are: what stands between white space."""
    return [word.span(1) for word in _WORD.finditer(text)]


def _by_words(
    text: str,
    keep: Sequence[Span],
    own: Sequence[Span],
    strength: float,
    change: Callable[[str, Draws], str],
    random: Random,
) -> tuple[str, list[Span], list[Span], int, int]:
    """Changes each word with a chance; a word that a kept part touches stays. One word is left at least.

    Returns:
        The text, where the kept parts are, which of the text's own words are as they were and where, how many words
        there were, and how many changed.
    """
    words = list(_WORD.finditer(text))
    draws = [(random.random(), (random.random(), random.random())) for _ in words]
    new = [
        change(word[1], chosen) if chance < strength and not _touched(word.span(), keep) else word[1]
        for word, (chance, chosen) in zip(words, draws, strict=True)
    ]
    if words and not any(new):
        last = max(range(len(words)), key=lambda index: draws[index][0])
        new[last] = words[last][1]
    pieces, moves, length = [text[: words[0].start()]] if words else [text], [], words[0].start() if words else 0
    before, left = set(own), []
    for word, written in zip(words, new, strict=True):
        if written == word[1] and word.span(1) in before:
            left.append((length, length + len(written)))
        moves.append((word.end(), length - word.start()))
        pieces.append(written + word[2] if written else "")
        length += len(pieces[-1])
    found = [(start + _shift(moves, start), end + _shift(moves, start)) for start, end in keep]
    changed = sum(word[1] != one for word, one in zip(words, new, strict=True))
    return "".join(pieces), found, left, len(words), changed


def _touched(span: Span, keep: Sequence[Span]) -> bool:
    return any(start < span[1] and span[0] < end for start, end in keep)


def _shift(moves: Sequence[tuple[int, int]], place: int) -> int:
    """How far the word that holds a character has moved."""
    return next((shift for end, shift in moves if place < end), 0)


def sentences_of(text: str) -> list[str]:
    """Its sentences, cut at signs that end one."""
    return [sentence.strip() for sentence in _SENTENCE.split(text) if sentence.strip()]


def _distracted(
    text: str,
    keep: Sequence[Span],
    own: Sequence[Span],
    strength: float,
    pool: Sequence[tuple[str, str]],
    random: Random,
) -> tuple[str, list[Span], list[Span], int, int]:
    """Puts sentences of other texts, which say nothing that is kept, before or behind sentences; as `_by_words`."""
    ends = [*(match.end() for match in _SENTENCE.finditer(text)), len(text)]
    starts = [0, *ends[:-1]]
    said = {text[start:end].casefold() for start, end in keep}
    every, added, shift, source = [*keep, *own], 0, 0, text
    spans = list(every)
    for start, end in zip(starts, ends, strict=True):
        chance, where, which = random.random(), random.random(), random.random()
        place = start if where < 0.5 else end
        if chance >= strength or any(a < place < b for a, b in keep):
            continue
        sentence = _other(pool, which, source, said)
        put = f"{sentence} " if place < len(source) else f" {sentence}"
        text = text[: place + shift] + put + text[place + shift :]
        spans = [
            (a + len(put), b + len(put)) if old >= place else (a, b)
            for (a, b), (old, _) in zip(spans, every, strict=True)
        ]
        shift += len(put)
        added += 1
    return text, spans[: len(keep)], spans[len(keep) :], len(ends), added


def _other(pool: Sequence[tuple[str, str]], which: float, text: str, said: set[str]) -> str:
    first = int(which * len(pool))
    for step in range(len(pool)):
        source, sentence = pool[(first + step) % len(pool)]
        if source != text and not any(one in sentence.casefold() for one in said):
            return sentence
    raise DataError(
        "distractors: no other text of the set has a sentence to put in (one that doesn't hold an answer). Take a "
        "set of more texts, or another kind of noise."
    )


# Kinds: a word and two draws → what is written in its place; an empty text drops it


def _neighbours() -> dict[str, str]:
    found: dict[str, str] = {}
    for number, row in enumerate(_KEYS):
        for place, key in enumerate(row):
            beside = [(number, place - 1), (number, place + 1), (number - 1, place), (number - 1, place + 1)]
            beside += [(number + 1, place - 1), (number + 1, place)]
            found[key] = "".join(_KEYS[n][p] for n, p in beside if 0 <= n < len(_KEYS) and 0 <= p < len(_KEYS[n]))
    return found


_NEIGHBOURS = _neighbours()
_HOMOPHONES: dict[str, tuple[str, ...]] = {
    word: tuple(other for other in group.split() if other != word)
    for group in _ALIKE.split(",")
    for word in group.split()
}


def _pick(options: Sequence[str], draw: float) -> str:
    return options[int(draw * len(options))]


def _keyboard(word: str, draws: Draws) -> str:
    """One letter becomes a neighbour on a QWERTY keyboard; a word of other letters stays."""
    places = [place for place, letter in enumerate(word) if letter.lower() in _NEIGHBOURS]
    if not places:
        return word
    place = places[int(draws[0] * len(places))]
    key = _pick(_NEIGHBOURS[word[place].lower()], draws[1])
    return word[:place] + (key.upper() if word[place].isupper() else key) + word[place + 1 :]


def _speech(word: str, draws: Draws) -> str:
    """As a recogniser may write it: no case, no signs, an English homophone; without one lost or behind a filler."""
    heard = _without_signs(word, but="'’-").strip("'’-").lower().replace("’", "'")
    if heard in _HOMOPHONES:
        return _pick(_HOMOPHONES[heard], draws[0])
    return f"{_pick(_FILLERS, draws[0])} {heard}" if len(heard) > _SHORT else ""


def _case(word: str, draws: Draws) -> str:
    """Small letters become capitals; a word with a capital loses it."""
    del draws
    return word.upper() if word.islower() else word.lower()


def _punctuation(word: str, draws: Draws) -> str:
    """A word with signs loses them; one without gets one."""
    bare = _without_signs(word)
    return bare if bare not in ("", word) else word + _pick(_SIGNS, draws[0])


def _dropped(word: str, draws: Draws) -> str:
    """Nothing."""
    del word, draws
    return ""


def _without_signs(word: str, but: str = "") -> str:
    return "".join(letter for letter in word if letter in but or category(letter)[0] != "P")


KINDS: Mapping[str, Callable[[str, Draws], str]] = {
    "keyboard": _keyboard,
    "speech": _speech,
    "case": _case,
    "punctuation": _punctuation,
    "words": _dropped,
}
"""Kinds of noise that change words, by name."""
NAMES = (*KINDS, DISTRACTORS)
"""Every kind."""
