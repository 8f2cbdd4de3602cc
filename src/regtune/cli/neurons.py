"""`regtune neurons`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, parse, quiet, require_there, say

HELP = CommandHelp(
    name="neurons",
    sentence="Put feed-forward neurons into words, find those of a word, hold one and see.",
    examples=(
        "regtune neurons HuggingFaceTB/SmolLM2-135M --find dog California",
        "regtune neurons HuggingFaceTB/SmolLM2-135M --compare runs/chat",
        "regtune neurons runs/chat/neurons-reads.json.gz --find dog",
        'regtune neurons runs/chat --clamp 12:345=20 --prompt "My favourite animal is the"',
    ),
)


@dataclass(frozen=True, kw_only=True)
class NeuronsArgs:
    """Puts every feed-forward neuron of a decoder or of an encoder of text into words, through the output embedding.

    A neuron's words are the tokens whose output embeddings have the largest product with its weights; no norm is
    applied. What that says and what it doesn't is in docs/neurons.md.
    """

    model: Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run directory, a model's folder, a hub name, or the file of a record that this command wrote; comes first."""
    find: tuple[str, ...] = ()
    """List the neurons that have these words among theirs; case and a space before the word make no difference."""
    compare: str | None = None
    """Another model, or its record: the share of neurons with the same top word."""
    clamp: tuple[str, ...] = ()
    """Hold neurons at an activation while the model reads --prompt: LAYER:NEURON=VALUE."""
    prompt: str | None = None
    """A text; for a masked language model with [MASK] where a word is missing."""
    write: int = 20
    """So many tokens that a decoder writes behind the prompt."""
    side: Literal["reads", "writes"] = "reads"
    """The weights that a neuron reads with (the up-projection), or writes with (the down-projection)."""
    top: int = 5
    """Words of each neuron."""
    layer: int | None = None
    """This layer alone, from 0."""
    output: Path | None = None
    """Where the record goes (.json or .json.gz): by default `neurons-SIDE.json.gz` in the run directory, or in
    runs/neurons/MODEL for other models, where all layers were read."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune neurons`."""
    args = parse(HELP, NeuronsArgs, argv)
    for name in filter(None, (args.model, args.compare)):
        if not name.endswith((".json", ".json.gz")):
            require_there(name)
    quiet()
    from regtune.analyses.neurons.neurons import neurons

    found = neurons(
        args.model,
        side=args.side,
        top=args.top,
        layer=args.layer,
        find=args.find,
        compare=args.compare,
        clamp=args.clamp,
        prompt=args.prompt,
        write=args.write,
        output=args.output,
    )
    say(f"{found}" + ("" if found.path is None else f"\n\nRecord: {found.path}"))
    return 0
