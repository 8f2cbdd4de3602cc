"""Asks a fine-tuned model questions about a text. Train one first: `regtune demo`.

python examples/ask_a_question.py runs/demo/n4/model
"""

from __future__ import annotations

import sys

from regtune import QuestionAnswerer

CONTEXT = (
    "The lighthouse on the north cape was finished in 1871. Its keeper, Maren Holt, lit the lamp every evening for "
    "thirty years, and wrote down each ship that passed."
)
QUESTIONS = ["When was the lighthouse finished?", "Who lit the lamp?", "For how long did she do that?"]


def main(folder: str = "runs/demo/n4/model") -> None:
    answerer = QuestionAnswerer(folder)
    for question, prediction in zip(QUESTIONS, answerer(question=QUESTIONS, context=CONTEXT), strict=True):
        best = prediction.n_best[0]
        print(f"{question}  {best.text}  (probability {best.probability:.2f}, characters {best.start} to {best.end})")


if __name__ == "__main__":
    main(*sys.argv[1:])
