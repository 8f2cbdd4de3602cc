"""An analysis of your own: how far a text's first token has come, from the embeddings to the last layer.

regtune --plugin drift_analysis.py inspect runs/n8 --parts drift
"""

from dataclasses import dataclass

import torch

from regtune import Analysis, Block, register


@dataclass(frozen=True, kw_only=True)
class DriftSettings:
    batch_size: int = 16


@register.analysis
class Drift(Analysis):
    name = "drift"
    title = "how far [CLS] comes"
    settings = DriftSettings

    def measure(self, session, rows, examples, settings):
        values = [None] * len(examples)
        for first in range(0, len(rows), settings.batch_size):
            batch = rows.batch(range(first, min(first + settings.batch_size, len(rows))))
            with torch.no_grad():
                states = session.forward(batch, labels=False, output_hidden_states=True).hidden_states
            found = torch.cosine_similarity(states[0][:, 0], states[-1][:, 0], dim=-1)
            for example, value in zip(batch["example"].tolist(), found.tolist(), strict=True):
                values[example] = value
        return {"measures": {"drift.cosine": values}}

    def blocks(self, content):
        known = [value for value in content["measures"]["drift.cosine"] if value is not None]
        row = ("cosine of [CLS], first and last states", sum(known) / len(known), len(known))
        return [Block(kind="table", title=self.title, columns=("measure", "mean", "texts"), rows=(row,))]
