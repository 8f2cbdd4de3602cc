"""What the command line's help says of each command: one sentence, and examples. In the order of the overview."""

from __future__ import annotations

COMMAND_HELP: dict[str, tuple[str, tuple[str, ...]]] = {
    "demo": (
        "Fine-tune MiniLM without and with registers on the embedded questions, and compare.",
        ("regtune demo",),
    ),
    "train": (
        "Fine-tune a model with registers, from a recipe and flags; a stopped run continues.",
        (
            "regtune train --model minilm --registers.num-registers 4 --output-dir runs/first",
            "regtune train recipes/minilm-tydiqa-en.yaml --training.seed 1 --output-dir runs/seed1",
            "regtune train --model roberta-base --data.train my.train.json --data.eval my.dev.json",
        ),
    ),
    "sweep": (
        "Run a grid of arms, numbers of registers, seeds and training sets; a stopped sweep continues.",
        (
            "regtune sweep recipes/ablation-minilm-cpu.yaml",
            "regtune sweep recipes/ablation-minilm-cpu.yaml --dry-run",
            "regtune sweep recipes/ablation-minilm-full.yaml --engine ray --cluster.num-gpus 0.25",
        ),
    ),
    "report": (
        "Write one HTML page about a sweep: verdict, figures, tables, flipped questions.",
        ("regtune report runs/ablation", "regtune report docs/results/ablation --output-dir runs/report"),
    ),
    "compare": (
        "Compare two runs question by question.",
        ("regtune compare runs/first runs/second",),
    ),
    "evaluate": (
        "Score a run or any question-answering model on evaluation sets, by language.",
        (
            "regtune evaluate runs/first",
            "regtune evaluate runs/first --data xquad:de xquad:zh my.dev.json.gz",
            "regtune evaluate runs/v2 --data squad_v2:dev --answers.null-answers",
        ),
    ),
    "ask": (
        "Ask a fine-tuned model a question about a text.",
        (
            'regtune ask runs/first --question "Who built it?" --context "It was built by Ada."',
            'cat article.txt | regtune ask runs/first --question "When was it found?" --context-file - --json',
        ),
    ),
    "info": (
        "Tell what a model or a run directory is.",
        ("regtune info runs/first", "regtune info minilm"),
    ),
    "doctor": (
        "Prove on your own checkpoint that registers do what they promise.",
        ("regtune doctor minilm", "regtune doctor my/model --registers.placement suffix"),
    ),
    "explain": (
        "Show which words an answer rests on.",
        (
            'regtune explain runs/n8 --question "Who built it?" --context "It was built by Ada." --html why.html',
            'regtune explain runs/n8 --compare runs/n0 --question "Who built it?" --context-file article.txt',
        ),
    ),
    "diagnose": (
        "Tell which known artefacts a model has, how strong, and where.",
        ("regtune diagnose minilm", "regtune diagnose runs/n0 --compare runs/n8 --data my.dev.json"),
    ),
    "inside": (
        "Measure everything inside a model; `regtune report` then draws it.",
        ("regtune inside runs/n8", "regtune inside runs/n8 --parts audit --limit 400"),
    ),
}
