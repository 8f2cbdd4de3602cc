"""One table for each noun: name → where it is. Built-in entries are loaded when they are first used.

From outside the package, one file with a decorator and `--plugin file.py`, or an entry point of an installed package in
the groups `regtune.tasks`, `regtune.families`, `regtune.methods` and `regtune.analyses`. A name that exists is never
overridden silently.

    from regtune import register

    @register.task
    class Rhymes:
        name = "rhymes"
        ...
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final, TypeVar

from regtune.errors import ConfigError, unknown_name

ItemT = TypeVar("ItemT")


class Registry:
    """The entries of one noun.

    Attributes:
        noun: in the singular, for messages: `task`.
        group: the group of entry points, `regtune.tasks`.
    """

    def __init__(self, noun: str, plural: str, builtin: dict[str, str]) -> None:
        """`builtin` maps a name to `module:object`, in the order of lists."""
        self.noun = noun
        self.group = f"regtune.{plural}"
        self._builtin = builtin
        self._added: dict[str, Any] = {}

    def add(self, item: ItemT) -> ItemT:
        """Registers an object or a class (an instance of it is made); also a decorator.

        Raises:
            ConfigError: no `name`, or a name that is taken.
        """
        made: Any = item() if isinstance(item, type) else item
        name = getattr(made, "name", None)
        if not isinstance(name, str) or not name:
            raise ConfigError(f"A {self.noun} needs a `name`; {item!r} has {name!r}.")
        if name in self._added and _again(self._added[name], made):
            return item  # the same file once more
        if name in self:
            raise ConfigError(f"The {self.noun} {name!r} exists already ({self.origin(name)}). Choose another name.")
        self._added[name] = made
        return item

    @contextlib.contextmanager
    def lent(self, item: Any) -> Iterator[None]:
        """Inside the context the entry is registered too. Raises as `add`."""
        before = dict(self._added)
        self.add(item)
        try:
            yield
        finally:
            self._added = before

    def get(self, name: str) -> Any:
        """The entry of that name.

        Raises:
            UnknownNameError: there is none; the nearest one is suggested.
        """
        if name in self._added:
            return self._added[name]
        if name in self._builtin:
            return _load(self._builtin[name])
        points = self._points()
        if name in points:
            found = points[name].load()
            return found() if isinstance(found, type) else found
        raise unknown_name(self.noun, name, self)

    def origin(self, name: str) -> str:
        """Where an entry comes from."""
        if name in self._builtin:
            return "built in"
        return _origin(self._added[name]) if name in self._added else str(self._points()[name].value)

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys((*self._builtin, *self._added, *self._points()))

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self._added or name in self._points()

    def _points(self) -> dict[str, Any]:
        found = {}
        for point in _installed(self.group, tuple(sys.path)):
            if point.name in self._builtin:
                raise ConfigError(
                    f"The installed package of {point.value} names a {self.noun} {point.name!r}, which is built in. "
                    "Uninstall it, or rename its entry point."
                )
            found[point.name] = point
        return found


@functools.cache
def _installed(group: str, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points of a group on this `sys.path`; finding them reads a file of every installed package."""
    return tuple(entry_points(group=group))


@functools.cache
def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    found = getattr(importlib.import_module(module), name)
    return found() if isinstance(found, type) else found


def _again(known: Any, made: Any) -> bool:
    """Whether an entry is one that is there: plain data by what it says, others by the file of their class."""
    plain = dataclasses.is_dataclass(made) and type(known) is type(made)
    return bool(known == made) if plain else _origin(known) == _origin(made)


def _origin(item: Any) -> str:
    kind = item if isinstance(item, type) else type(item)
    module = sys.modules.get(kind.__module__)
    return str(getattr(module, "__file__", None) or kind.__module__)


TASKS: Final = Registry(
    "task",
    "tasks",
    {
        "qa": "regtune.tasks.qa.task:QuestionAnswering",
        "classify": "regtune.tasks.classify:Classification",
        "multi-label": "regtune.tasks.multi_label:MultiLabelClassification",
        "regress": "regtune.tasks.regress:Regression",
        "tag": "regtune.tasks.tag:Tagging",
        "choose": "regtune.tasks.choose:MultipleChoice",
        "lm": "regtune.tasks.lm:LanguageModelling",
        "instruct": "regtune.tasks.instruct:InstructionTuning",
        "mlm": "regtune.tasks.mlm:MaskedLanguageModelling",
        "images": "regtune.tasks.images:ImageClassification",
    },
)
FAMILIES: Final = Registry(
    "family",
    "families",
    {
        "ALBERT": "regtune.families.encoders.albert:ALBERT",
        "BART": "regtune.families.encoder_decoders.bart:BART",
        "BERT": "regtune.families.encoders.bert:BERT",
        "BigBird": "regtune.families.encoders.big_bird:BIG_BIRD",
        "CamemBERT": "regtune.families.encoders.roberta:CAMEMBERT",
        "CLIP (vision)": "regtune.families.vision.clip:CLIP",
        "DeBERTa": "regtune.families.encoders.deberta:DEBERTA",
        "DeBERTa-v2": "regtune.families.encoders.deberta_v2:DEBERTA_V2",
        "DeiT": "regtune.families.vision.deit:DEIT",
        "DINOv2": "regtune.families.vision.dinov2:DINOV2",
        "DistilBERT": "regtune.families.encoders.distilbert:DISTILBERT",
        "ELECTRA": "regtune.families.encoders.electra:ELECTRA",
        "EuroBERT": "regtune.families.encoders.eurobert:EUROBERT",
        "Gemma2": "regtune.families.decoders.gemma:GEMMA2",
        "Gemma3": "regtune.families.decoders.gemma:GEMMA3",
        "GPT-2": "regtune.families.decoders.gpt2:GPT2",
        "GPT-NeoX": "regtune.families.decoders.gpt_neox:GPT_NEOX",
        "Llama": "regtune.families.decoders.llama:LLAMA",
        "Longformer": "regtune.families.encoders.longformer:LONGFORMER",
        "Marian": "regtune.families.encoder_decoders.bart:MARIAN",
        "Mistral": "regtune.families.decoders.mistral:MISTRAL",
        "ModernBERT": "regtune.families.encoders.modernbert:MODERNBERT",
        "MPNet": "regtune.families.encoders.mpnet:MPNET",
        "mT5": "regtune.families.encoder_decoders.t5:MT5",
        "NomicBERT": "regtune.families.encoders.nomic_bert:NOMIC_BERT",
        "OLMo2": "regtune.families.decoders.olmo2:OLMO2",
        "Phi-3": "regtune.families.decoders.phi3:PHI3",
        "Qwen2": "regtune.families.decoders.qwen:QWEN2",
        "Qwen3": "regtune.families.decoders.qwen:QWEN3",
        "RoBERTa": "regtune.families.encoders.roberta:ROBERTA",
        "SigLIP (vision)": "regtune.families.vision.siglip:SIGLIP",
        "T5": "regtune.families.encoder_decoders.t5:T5",
        "ViT": "regtune.families.vision.vit:VIT",
        "XLM-R": "regtune.families.encoders.roberta:XLM_ROBERTA",
    },
)
_OF_PEFT = (
    "lora",
    "rslora",
    "lora_plus",
    "dora",
    "pissa",
    "olora",
    "lora_ga",
    "eva",
    "qlora",
    "loha",
    "lokr",
    "vera",
    "miss",
    "ia3",
    "ln_tuning",
    "bitfit",
    "houlsby",
    "pfeiffer",
    "prompt_tuning",
    "p_tuning",
    "mpt",
    "prefix",
    "llama_adapter",
    "trainable_tokens",
)
"""The table in `regtune.methods.peft`, by name, since loading it takes peft."""
METHODS: Final = Registry(
    "method",
    "methods",
    {
        "registers": "regtune.methods.registers:RegistersMethod",
        "linear_probe": "regtune.methods.linear_probe:LinearProbe",
        "lp_ft": "regtune.methods.lp_ft:LinearProbeThenFineTune",
        "warm_up": "regtune.methods.warm_up:WarmUp",
        "self_distil": "regtune.methods.self_distil:SelfDistil",
        "mutor": "regtune.methods.mutor:Mutor",
        "sink_logits": "regtune.methods.sink_logits:SinkLogits",
        "test_time_registers": "regtune.methods.test_time_registers:TestTimeRegisters",
    }
    | {name: f"regtune.methods.peft:{name}" for name in _OF_PEFT},
)
ANALYSES: Final = Registry(
    "analysis",
    "analyses",
    {
        "attention": "regtune.analyses.attention.attention:AttentionAnalysis",
        "artefacts": "regtune.analyses.artefacts.analysis:ArtefactAnalysis",
        "int8": "regtune.analyses.int8:Int8Analysis",
        "registers": "regtune.analyses.registers.analysis:RegisterAnalysis",
        "heads": "regtune.analyses.heads:HeadAnalysis",
        "explanations": "regtune.analyses.explanations:ExplanationAnalysis",
        "faithfulness": "regtune.analyses.faithfulness.analysis:FaithfulnessAnalysis",
    },
)


class _Register:
    """`@register.task`, `@register.method`, `@register.analysis`, and `register.family(Family(...))`."""

    task = staticmethod(TASKS.add)
    family = staticmethod(FAMILIES.add)
    method = staticmethod(METHODS.add)
    analysis = staticmethod(ANALYSES.add)


register: Final = _Register()


def load_plugin(path: str | Path) -> None:
    """Runs a Python file that registers something. Only run files that you trust: it is code.

    Raises:
        ConfigError: no such file, or it fails while it runs; the error is named.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file() or file.suffix != ".py":
        raise ConfigError(
            f"--plugin {path} is no Python file. Name a .py file that registers a task, family or method."
        )
    name = f"regtune_plugin_{file.stem}_{abs(hash(str(file)))}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"--plugin {path} failed: {type(error).__name__}: {error}") from error
