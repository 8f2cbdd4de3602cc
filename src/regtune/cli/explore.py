"""`regtune explore`: its arguments, its help, and the one library call that it makes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from regtune.cli.parsing import CommandHelp, parse, quiet, require_there, say

HELP = CommandHelp(
    name="explore",
    sentence="Explore a model, or two, in the browser: predictions, relevance, attention, registers, examples.",
    examples=(
        "regtune explore runs/n8",
        "regtune explore runs/n8 --compare runs/n0 --port 8000",
        "REGTUNE_PASSWORD=... regtune explore runs/n8 --host 0.0.0.0 --share",
    ),
)


@dataclass(frozen=True, kw_only=True)
class ExploreArgs:
    """Serves a page on this machine: give a text, and see what a model says of it, with and without its registers.

    Nothing is loaded from the network and nothing is sent to it. Needs the extra `app`.
    """

    folder: Annotated[Positional[str], tyro.conf.arg(metavar="DIR")]
    """A run directory, a model's folder or a hub name; comes first."""
    compare: str | None = None
    """Another one of the same task, beside it; the examples on which two runs differ can be listed."""
    host: str = "127.0.0.1"
    """Address to serve on."""
    port: int = 7860
    """Port; 0 takes any that is free."""
    share: bool = False
    """Let other machines in, where --host is an address that they reach; they log in with the password that the
    environment variable REGTUNE_PASSWORD holds."""


def run(argv: Sequence[str]) -> int:
    """Runs `regtune explore`."""
    args = parse(HELP, ExploreArgs, argv)
    for name in filter(None, (args.folder, args.compare)):
        require_there(name)
    quiet()
    from regtune.app.serve import PASSWORD, USER, explore

    def ready(address: str) -> None:
        say(f"Open {address} in a browser; Ctrl-C ends it.")
        if args.share:
            say(
                f"Other machines that reach it can use the model and read the run's examples, once they log in as "
                f"{USER} with the password. What they send isn't encrypted."
            )

    explore(
        args.folder,
        compare=args.compare,
        host=args.host,
        port=args.port,
        share=args.share,
        password=os.environ.get(PASSWORD, ""),
        ready=ready,
    )
    return 0
