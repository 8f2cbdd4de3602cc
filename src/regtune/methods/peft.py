"""peft's methods as methods of a run: one table of what each is called there, how it is set, and what it can't do.

All of them freeze the base model; their own weights and the head learn. Targets come from the family's table and the
head is found by walking, so that nothing depends on peft's lists of names. With registers in the run, the adapter holds
them too (`regtune.registers.in_peft`). Bottleneck adapters and BitFit, which peft hasn't got, are rows like the others.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from regtune.config import Count, Positive, TrainConfig
from regtune.errors import ConfigError, MissingExtraError, UnsupportedModelError
from regtune.families._family import Family, modules_at
from regtune.interfaces import Attached, Group, Method, Rows
from regtune.training.trainer import preserved_random_state
from regtune.typed import Checked, Range

try:
    import peft
    from peft.tuners.lora import LoraLayer
except ImportError as error:
    raise MissingExtraError("peft", "peft", "LoRA and peft's other methods") from error

from regtune.methods.adapters import BottleneckConfig
from regtune.methods.bitfit import BitFitConfig
from regtune.registers.cache_names import cache_argument
from regtune.registers.in_peft import AdaptedModel, RegisterLoraConfig, with_registers
from regtune.registers.surgery import backbone_of, base_of, find_registers, remove_registers

if TYPE_CHECKING:
    from regtune.session import Session

__all__ = ["RegisterLoraConfig"]

Share = Annotated[float, Range(0, 1, below=True)]


# How they are set


@dataclass(frozen=True, kw_only=True)
class Targets(Checked, section="methods"):
    """Which parts of the base model are changed."""

    target_modules: tuple[str, ...] = ()
    """Ends of the names of the modules to change; by default all that the method is meant for."""


@dataclass(frozen=True, kw_only=True)
class Ranks(Targets, section="methods"):
    """Low-rank changes of weights."""

    r: Count = 8
    """Rank."""
    alpha: Count = 16
    """The change is scaled by alpha / r (rsLoRA: alpha / √r)."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Ranks, section="methods"):
    """LoRA, and what differs from it in start values or rates."""

    dropout: Share = 0.0
    """Of the input of the low-rank path."""


@dataclass(frozen=True, kw_only=True)
class LoraPlusSettings(LoraSettings, section="methods"):
    """LoRA+."""

    ratio: Positive = 16.0
    """Learning rate of the second matrix over that of the first."""


@dataclass(frozen=True, kw_only=True)
class FromDataSettings(LoraSettings, section="methods"):
    """LoRA with start values from the training data."""

    examples: Count = 64
    """Rows that are looked at."""


@dataclass(frozen=True, kw_only=True)
class RankSettings(Targets, section="methods"):
    """A rank without a scale."""

    r: Count = 8
    """Rank."""


@dataclass(frozen=True, kw_only=True)
class VeraSettings(RankSettings, section="methods"):
    """VeRA."""

    r: Count = 256
    """Rank of the shared random matrices."""


@dataclass(frozen=True, kw_only=True)
class BottleneckSettings(Targets, section="methods"):
    """Bottleneck adapters."""

    reduction: Count = 16
    """Hidden size over the bottleneck's."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings(Checked, section="methods"):
    """Learned tokens or keys."""

    num_virtual_tokens: Count = 20
    """How many."""


@dataclass(frozen=True, kw_only=True)
class LlamaAdapterSettings(Checked, section="methods"):
    """LLaMA-Adapter."""

    adapter_len: Count = 10
    """Learned tokens a layer."""
    adapter_layers: Count = 30
    """Layers that get them, counted from the last; at most all."""


@dataclass(frozen=True, kw_only=True)
class TokenSettings(Checked, section="methods"):
    """Trainable tokens."""

    tokens: tuple[str, ...] = ()
    """Tokens whose embeddings learn; by default the tokenizer's special ones."""


# Where they go


@dataclass(frozen=True)
class Place:
    """The model that a method is put onto, before anything is changed."""

    model: Any
    reader: Any
    backbone: Any
    family: Family
    registers: int
    """How many the run has put onto it."""

    def targets(self, settings: Any, modules: Iterable[nn.Module]) -> dict[str, list[str]]:
        """The modules to change: those that the settings name, or these."""
        paths = {module: path for path, module in self.model.named_modules()}
        return {"target_modules": list(settings.target_modules) or [paths[module] for module in modules]}

    def within_layers(self, *paths: str | None) -> list[nn.Module]:
        """The parts at these paths of all layers; their linear layers without any."""
        found = list(modules_at(self.backbone, *self.family.within_layers(*paths)))
        return found if paths else [m for layer in found for m in layer.modules() if isinstance(m, (nn.Linear, Conv1D))]

    def keys_and_values(self) -> list[nn.Module]:
        """What makes keys and values; where one layer makes them with the queries, that layer."""
        family = self.family
        if family.keys is not None:
            return self.within_layers(f"{family.attention}.{family.keys}", f"{family.attention}.{family.values}")
        inside = {m for attention in self.within_layers(family.attention) for m in attention.modules()}
        behind = set(self.within_layers(family.attention_out))
        return [module for module in self.within_layers() if module in inside - behind]

    def norms(self) -> list[nn.Module]:
        """Every norm that has weights."""
        family, backbone = self.family, self.backbone
        outside = [path for path in (family.norm, family.final_norm) if path is not None]
        found = [*modules_at(backbone, *outside), *self.within_layers(*family.norms)]
        return [module for module in dict.fromkeys(found) if next(module.parameters(), None) is not None]

    def biased(self) -> list[nn.Module]:
        """Modules of the backbone with a bias, the pooler's left out: it belongs to the head."""
        found = (
            module for module in self.backbone.modules() if isinstance(getattr(module, "bias", None), nn.Parameter)
        )
        return [module for module in found if module not in self._pooler]

    @property
    def transposed(self) -> bool:
        """Whether linear layers keep their weights transposed (GPT-2)."""
        return any(isinstance(module, Conv1D) for module in self.backbone.modules())

    @property
    def width(self) -> int:
        """Of word embeddings."""
        return int(self.backbone.get_input_embeddings().embedding_dim)

    @property
    def head(self) -> list[str]:
        """Modules outside the backbone that have weights of their own, and the backbone's pooler.

        None where the head writes tokens: it is as pretrained as the backbone, and often shares its table of words.
        """
        if self.model.get_output_embeddings() is not None:
            return []
        inside = {*self.backbone.modules()} - self._pooler
        named = self.model.named_modules()
        return [
            p
            for p, module in named
            if module not in inside and next(module.parameters(recurse=False), None) is not None
        ]

    @property
    def _pooler(self) -> set[nn.Module]:
        return {*(getattr(self.backbone, "pooler", None) or nn.Module()).modules()}


Fields = Callable[[Place, Any], Mapping[str, Any]]
Refuses = Callable[[Place], str | None]


class Row(Method):
    """One of peft's methods, or one that is entered there."""

    base = "kept"

    def __init__(
        self,
        name: str,
        called: str,
        config: Any,
        settings: type,
        fields: Fields,
        texts: tuple[str, str, str],
        refuses: Refuses = lambda _: None,
    ) -> None:
        """A row of the table.

        Args:
            name: in recipes.
            called: in tables.
            config: peft's config class.
            settings: the method's.
            fields: the config's, from the settings.
            texts: what it changes, what it costs, when to use it.
            refuses: why the method can't be put onto a model, if it can't.
        """
        self.name, self.called, self.config, self.settings = name, called, config, settings  # type: ignore[misc]
        self.fields, self.refuses = fields, refuses
        self.title, self.costs, self.use = texts  # type: ignore[misc]

    def attach(self, session: Session, settings: Any) -> Attached:
        """Wraps the model; registers that the run has put onto it become part of the adapter.

        Raises:
            UnsupportedModelError: the method doesn't fit the model, and why.
        """
        model = session.model
        if hasattr(base_of(model), "decoder"):
            raise UnsupportedModelError(
                f"{self.called} can't be put onto {session.name}: where the parts of a decoder beside an encoder are "
                "isn't in the family's table. Fine-tune it whole, with or without registers."
            )
        registers = find_registers(model) if session.config.registers.num_registers else None
        number = 0 if registers is None else registers.num_registers
        place = Place(model, session.reader, backbone_of(model), session.family, number)
        reason = self.refuses(place)
        if reason is not None:
            raise UnsupportedModelError(f"{self.called} can't be put onto {session.name}: {reason}.")
        learnt = {parameter: parameter.requires_grad for parameter in model.parameters()}
        fields: dict[str, Any] = {"base_model_name_or_path": session.config.model, "modules_to_save": place.head}
        fields |= self.fields(place, settings)
        self._require_room(session, fields.get("num_virtual_tokens", 0))
        config = self.config
        if registers is not None:
            remove_registers(model)
            config, fields["registers"] = with_registers(config), registers.config
        session.model = AdaptedModel(model, config(**fields)).train(model.training)
        if registers is not None:
            made = find_registers(session.model)
            assert made is not None
            made.load_state_dict(registers.state_dict())
        return _OnPeft(session, learnt)

    def _require_room(self, session: Session, tokens: int) -> None:
        limit, longest = session.text_limit, session.config.data.max_length
        if limit is not None and tokens and longest + tokens > limit:
            raise ConfigError(
                f"methods.{self.name}.num_virtual_tokens={tokens} and data.max_length={longest} are more than the "
                f"{limit} positions of {session.config.model}. Set --data.max-length {limit - tokens} or less."
            )

    def label(self, settings: Any) -> str:
        """The method, and its rank where it has one."""
        rank = getattr(settings, "r", None)
        return self.called if rank is None else f"{self.called}, r = {rank}"


class _OnPeft(Attached):
    """An adapter on a model."""

    def __init__(self, session: Session, learnt: Mapping[nn.Parameter, bool]) -> None:
        self.session, self.learnt = session, learnt

    def detach(self) -> None:
        """The base model as it was (QLoRA's stays in 4 bits)."""
        self.session.model = self.session.model.unload()
        for parameter, flag in self.learnt.items():
            parameter.requires_grad_(flag)

    def disabled(self) -> AbstractContextManager[None]:
        """Inside, the base model answers, bit for bit."""
        found: AbstractContextManager[None] = self.session.model.disable_adapter()
        return found

    def save(self, folder: Path) -> None:
        """The adapter; `peft.PeftModel.from_pretrained` reads it."""
        self.session.model.save_pretrained(folder)


# LoRA and its relatives


def _lora(**more: Any) -> Fields:
    def fields(place: Place, settings: LoraSettings) -> Mapping[str, Any]:
        ranks = {"r": settings.r, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout}
        return {**ranks, "fan_in_fan_out": place.transposed, **place.targets(settings, place.within_layers()), **more}

    return fields


def _lora_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


class LoraPlus(Row):
    """LoRA+ (Hayou 2024): the second matrix learns faster. Registers keep their own rate."""

    def groups(self, model: nn.Module, settings: LoraPlusSettings, training: TrainConfig) -> list[Group]:
        """The second matrices."""
        fast = tuple(p for name, p in model.named_parameters() if ".lora_B." in name)
        rate = training.learning_rate * settings.ratio
        return [Group(name="lora_B", parameters=fast, learning_rate=rate, weight_decay=training.weight_decay)]


class Moved(Row):
    """LoRA that starts from a part of the base's weights or gradients, and leaves the base where it is.

    peft takes the start values' product A·B out of the base's weights, so that disabling gives another model and, with
    LoRA-GA, loading does too. Here the adapter has twice the rank: the second half holds A and -B for good. The sum
    starts at zero, the base keeps its bits, and what is saved is plain LoRA.
    """

    def attach(self, session: Session, settings: LoraSettings) -> Attached:
        """Wraps the model; start values that need no data are set."""
        attached = super().attach(session, settings)
        if not isinstance(settings, FromDataSettings):
            self._start(session.model, settings, {})
        return attached

    def initialise(self, session: Session, settings: LoraSettings, rows: Rows[Any]) -> None:
        """Start values from the gradients of the base's weights on training rows."""
        if isinstance(settings, FromDataSettings):
            with preserved_random_state():
                torch.manual_seed(session.config.training.seed)
                self._start(session.model, settings, _gradients(session, rows, settings.examples))

    def _start(self, model: nn.Module, settings: LoraSettings, gradients: Mapping[nn.Module, Tensor]) -> None:
        for layer in _lora_layers(model):
            alone = copy.deepcopy(layer.get_base_layer())
            if gradients:
                alone._peft_loraga_grad = gradients[layer.get_base_layer()]
            more = {"lora_ga_config": peft.LoraGAConfig()} if gradients else {}
            config = peft.LoraConfig(
                r=settings.r,
                lora_alpha=settings.alpha,
                target_modules=["layer"],
                fan_in_fan_out=layer.fan_in_fan_out,
                init_lora_weights=self.name,
                **more,
            )
            made = peft.get_peft_model(nn.ModuleDict({"layer": alone}), config).base_model.model["layer"]
            first, second = (getattr(made, f"lora_{name}")["default"].weight.detach() for name in "AB")
            for name, halves, axis in (("A", (first, first), 0), ("B", (second, -second), 1)):
                weight = getattr(layer, f"lora_{name}")["default"].weight
                with torch.no_grad():
                    weight.copy_(torch.cat(halves, dim=axis))

    def groups(self, model: nn.Module, settings: LoraSettings, training: TrainConfig) -> list[Group]:
        """The matrices, without decay, and no gradient for the half that stays."""
        found = []
        for layer in _lora_layers(model):
            for name, axis in (("A", 0), ("B", 1)):
                weight = getattr(layer, f"lora_{name}")["default"].weight
                if weight.requires_grad and not weight._backward_hooks:
                    weight.register_hook(lambda gradient, axis=axis: _first_half(gradient, axis))
                found.append(weight)
        return [Group(name="lora", parameters=tuple(found), learning_rate=training.learning_rate)]


def _first_half(gradient: Tensor, axis: int) -> Tensor:
    kept, left = gradient.chunk(2, dim=axis)
    return torch.cat([kept, torch.zeros_like(left)], dim=axis)


def _moved(**more: Any) -> Fields:
    plain = _lora(**more)

    def fields(place: Place, settings: LoraSettings) -> Mapping[str, Any]:
        return {**plain(place, settings), "r": 2 * settings.r, "lora_alpha": 2 * settings.alpha}

    return fields


def _batches(session: Session, rows: Rows[Any], examples: int) -> list[dict[str, Any]]:
    """Training rows as the model takes them, spread evenly, in batches of a run's size."""
    size = session.config.training.batch_size
    chosen = sorted({index * len(rows) // examples for index in range(examples)} & set(range(len(rows))))
    found = [rows.batch(chosen[first : first + size]) for first in range(0, len(chosen), size)]
    return [
        {name: value.to(session.device) for name, value in batch.items() if name in session.accepted} for batch in found
    ]


def _gradients(session: Session, rows: Rows[Any], examples: int) -> dict[nn.Module, Tensor]:
    """Of the loss, by the base's weights that the adapter changes."""
    layers = [layer.get_base_layer() for layer in _lora_layers(session.model)]
    for layer in layers:
        layer.weight.requires_grad_(True)
    training = session.model.training
    batches = _batches(session, rows, examples)
    with session.model.eval().disable_adapter():
        for batch in batches:
            (session.model(**batch).loss / len(batches)).backward()
    found = {layer: layer.weight.grad.clone() for layer in layers}
    session.model.train(training).zero_grad(set_to_none=True)
    for layer in layers:
        layer.weight.requires_grad_(False)
        layer.weight.grad = None
    return found


class Eva(Row):
    """EVA (Paischer 2024): the first matrix starts as the main directions of what each layer reads."""

    def initialise(self, session: Session, settings: FromDataSettings, rows: Rows[Any]) -> None:
        """Runs the base model, without registers, over training rows."""
        labels = ("labels", "start_positions", "end_positions")
        batches = [
            {name: value for name, value in batch.items() if name not in labels}
            for batch in _batches(session, rows, settings.examples)
        ]
        with preserved_random_state(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about layers whose directions have not settled
            torch.manual_seed(session.config.training.seed)
            peft.initialize_lora_eva_weights(
                session.model,
                batches,
                prepare_model_inputs_fn=lambda batch, _: batch["attention_mask"].flatten(0, -2).bool(),
                prepare_layer_inputs_fn=_text_alone,
                show_progress_bar=False,
            )
        config = session.model.peft_config["default"]
        config.init_lora_weights, config.eva_config = True, None  # what is saved is plain LoRA


def _text_alone(read: tuple[Tensor, ...], text: Tensor, _: str) -> Tensor:
    """What a layer reads of the text, `[tokens, width]`; DeBERTa's also read distances, which are no text."""
    states = read[0]
    return states[text] if states.shape[:2] == text.shape else states.reshape(-1, states.shape[-1])


def _ranks(place: Place, settings: Any) -> Mapping[str, Any]:
    scale = {"alpha": settings.alpha} if hasattr(settings, "alpha") else {}
    return {"r": settings.r, **scale, **place.targets(settings, place.within_layers())}


def _ia3(place: Place, settings: Targets) -> Mapping[str, Any]:
    behind = place.within_layers(place.family.feed_forward_out)
    found = place.targets(settings, [*place.keys_and_values(), *behind])
    names = place.targets(Targets(), behind)["target_modules"]
    inside = [name for name in found["target_modules"] if any(path.endswith(name) for path in names)]
    return {**found, "feedforward_modules": inside, "fan_in_fan_out": place.transposed}


def _bottleneck(*parts: str) -> Fields:
    def fields(place: Place, settings: BottleneckSettings) -> Mapping[str, Any]:
        behind = place.within_layers(*(getattr(place.family, part) for part in parts))
        return {"reduction": settings.reduction, **place.targets(settings, behind)}

    return fields


def _soft(**more: Any) -> Fields:
    def fields(place: Place, settings: PromptSettings) -> Mapping[str, Any]:
        return {"num_virtual_tokens": settings.num_virtual_tokens, "token_dim": place.width, **more}

    return fields


def _llama_adapter(place: Place, settings: LlamaAdapterSettings) -> Mapping[str, Any]:
    layers = min(settings.adapter_layers, place.backbone.config.num_hidden_layers)
    return {"adapter_len": settings.adapter_len, "adapter_layers": layers}


def _tokens(place: Place, settings: TokenSettings) -> Mapping[str, Any]:
    ids = [place.reader.convert_tokens_to_ids(token) for token in settings.tokens] or place.reader.all_special_ids
    known = place.reader.get_vocab()
    for token in settings.tokens:
        if token not in known:
            raise ConfigError(f"methods.trainable_tokens.tokens: {token!r} is no token of this model's vocabulary.")
    return {"token_indices": sorted(set(ids)), **place.targets(Targets(), [place.backbone.get_input_embeddings()])}


# What they can't do


def _not_transposed(place: Place) -> str | None:
    return (
        "its layers keep their weights transposed, which peft's layers for it don't know" if place.transposed else None
    )


def _takes_cache(place: Place) -> str | None:
    if place.family.causal and place.registers:
        return "in a decoder registers stand in the cache before the text, and a prefix fills that cache first"
    taken = cache_argument(type(place.backbone).forward)
    return None if taken else "its layers take no keys and values from outside, so a prefix is dropped"


def _is_llama(place: Place) -> str | None:
    kinds = ("llama", "mistral", "gpt2")
    own = place.backbone.config.model_type
    return None if own in kinds else f"peft has it for {', '.join(kinds)} alone, and this is {own}"


def _reads_words(place: Place) -> str | None:
    return "it reads images, and this learns embeddings of words" if place.family.reads_images else None


def _has_biases(place: Place) -> str | None:
    return None if place.biased() else "it has no biases"


_KEPT_HALF = "twice LoRA's: the start is subtracted, so that the base stays as it is"
ROWS: tuple[Row, ...] = (
    Row(
        "lora",
        "LoRA",
        peft.LoraConfig,
        LoraSettings,
        _lora(),
        (
            "a product of two narrow matrices is added to every linear layer (Hu 2022)",
            "r · (in + out) weights a layer; nothing once merged",
            "first, wherever the base must stay frozen",
        ),
    ),
    Row(
        "rslora",
        "rsLoRA",
        peft.LoraConfig,
        LoraSettings,
        _lora(use_rslora=True),
        ("LoRA scaled by alpha / √r (Kalajdzievski 2023)", "as LoRA", "with ranks above about 16"),
    ),
    LoraPlus(
        "lora_plus",
        "LoRA+",
        peft.LoraConfig,
        LoraPlusSettings,
        _lora(),
        ("LoRA whose second matrix learns faster (Hayou 2024)", "as LoRA", "when LoRA learns slowly; search the ratio"),
    ),
    Row(
        "dora",
        "DoRA",
        peft.LoraConfig,
        LoraSettings,
        _lora(use_dora=True),
        (
            "LoRA on a weight's direction, and its length learns apart (Liu 2024)",
            "one number more a row of each weight; a slower step",
            "with small ranks",
        ),
    ),
    Moved(
        "pissa",
        "PiSSA",
        peft.LoraConfig,
        LoraSettings,
        _moved(),
        (
            "LoRA that starts as the largest singular directions (Meng 2024)",
            _KEPT_HALF,
            "to learn faster than LoRA does",
        ),
    ),
    Moved(
        "olora",
        "OLoRA",
        peft.LoraConfig,
        LoraSettings,
        _moved(),
        ("LoRA that starts from a QR decomposition (Büyükakyüz 2024)", _KEPT_HALF, "as PiSSA, with a cheaper start"),
        _not_transposed,
    ),
    Moved(
        "lora_ga",
        "LoRA-GA",
        peft.LoraConfig,
        FromDataSettings,
        _moved(),
        (
            "LoRA that starts along the gradient of full fine-tuning (Wang 2024)",
            f"{_KEPT_HALF}; a backward pass over some rows first",
            "as PiSSA, fitted to the task",
        ),
    ),
    Eva(
        "eva",
        "EVA",
        peft.LoraConfig,
        FromDataSettings,
        _lora(init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0, use_label_mask=False)),
        (
            "LoRA that starts as the main directions of what each layer reads (Paischer 2024)",
            "as LoRA; a forward pass over some rows first",
            "when the texts differ from those of pretraining",
        ),
    ),
    Row(
        "qlora",
        "QLoRA",
        RegisterLoraConfig,
        LoraSettings,
        _lora(quantised=True),
        (
            "LoRA on a base whose linear layers are held in 4 bits, nf4 (Dettmers 2023)",
            "as LoRA; a slower step, an eighth of the memory for those layers",
            "when the base doesn't fit into memory",
        ),
        _not_transposed,
    ),
    Row(
        "loha",
        "LoHa",
        peft.LoHaConfig,
        Ranks,
        _ranks,
        (
            "a product, number by number, of two low-rank changes (Hyeon-Woo 2022)",
            "twice LoRA's",
            "for changes of high rank",
        ),
        _not_transposed,
    ),
    Row(
        "lokr",
        "LoKr",
        peft.LoKrConfig,
        Ranks,
        _ranks,
        ("a Kronecker product (Yeh 2024)", "less than LoRA's", "for the smallest files with high rank"),
        _not_transposed,
    ),
    Row(
        "vera",
        "VeRA",
        peft.VeraConfig,
        VeraSettings,
        _ranks,
        (
            "two learned vectors a layer around random matrices that all share (Kopiczko 2024)",
            "r + out weights a layer, and the shared matrices once",
            "for many adapters on one base",
        ),
    ),
    Row(
        "miss",
        "MiSS",
        peft.MissConfig,
        RankSettings,
        _ranks,
        (
            "one shared block added along each weight, Bone's successor (Kang 2024)",
            "r · out weights a layer",
            "as LoRA, at half its size",
        ),
        _not_transposed,
    ),
    Row(
        "ia3",
        "IA3",
        peft.IA3Config,
        Targets,
        _ia3,
        (
            "keys, values and feed-forward are scaled by learned vectors (Liu 2022)",
            "a few vectors a layer",
            "with few examples",
        ),
    ),
    Row(
        "ln_tuning",
        "LN tuning",
        peft.LNTuningConfig,
        Targets,
        lambda place, settings: place.targets(settings, place.norms()),
        ("the norms learn (Zhao 2024)", "two vectors a norm", "as the smallest change worth trying"),
    ),
    Row(
        "bitfit",
        "BitFit",
        BitFitConfig,
        Targets,
        lambda place, settings: place.targets(settings, place.biased()),
        ("the biases learn (Ben Zaken 2022)", "a vector a layer", "with few examples, on models that have biases"),
        _has_biases,
    ),
    Row(
        "houlsby",
        "Houlsby adapters",
        BottleneckConfig,
        BottleneckSettings,
        _bottleneck("attention_out", "feed_forward_out"),
        (
            "a bottleneck behind attention and behind feed-forward (Houlsby 2019)",
            "slower answers: it can't be merged",
            "beside LoRA, for comparison",
        ),
    ),
    Row(
        "pfeiffer",
        "Pfeiffer adapters",
        BottleneckConfig,
        BottleneckSettings,
        _bottleneck("feed_forward_out"),
        (
            "a bottleneck behind feed-forward (Pfeiffer 2021)",
            "half of Houlsby's",
            "as Houlsby's, when it must be smaller",
        ),
    ),
    Row(
        "prompt_tuning",
        "prompt tuning",
        with_registers(peft.PromptTuningConfig),
        PromptSettings,
        _soft(),
        (
            "learned word embeddings before the text (Lester 2021)",
            "N vectors; N positions of the text",
            "with very large models",
        ),
        _reads_words,
    ),
    Row(
        "p_tuning",
        "P-tuning",
        with_registers(peft.PromptEncoderConfig),
        PromptSettings,
        _soft(),
        (
            "prompt tuning through a small network (Liu 2021)",
            "as prompt tuning; the network is not kept",
            "when prompt tuning is unsteady",
        ),
        _reads_words,
    ),
    Row(
        "mpt",
        "multitask prompt tuning",
        with_registers(peft.MultitaskPromptTuningConfig),
        PromptSettings,
        _soft(num_tasks=1, num_ranks=1),
        (
            "prompt tuning as a shared prompt times a task's own factors (Wang 2023)",
            "as prompt tuning",
            "with one task here: as its control",
        ),
        _reads_words,
    ),
    Row(
        "prefix",
        "prefix tuning",
        with_registers(peft.PrefixTuningConfig),
        PromptSettings,
        lambda _, settings: {"num_virtual_tokens": settings.num_virtual_tokens},
        (
            "learned keys and values in every layer (Li and Liang 2021)",
            "2 · layers · N vectors; N positions",
            "where layers take a cache",
        ),
        _takes_cache,
    ),
    Row(
        "llama_adapter",
        "LLaMA-Adapter",
        with_registers(peft.AdaptionPromptConfig),
        LlamaAdapterSettings,
        _llama_adapter,
        (
            "learned tokens behind a gate in the last layers (Zhang 2023)",
            "a few vectors a layer",
            "with LLaMA-like decoders",
        ),
        _is_llama,
    ),
    Row(
        "trainable_tokens",
        "trainable tokens",
        with_registers(peft.TrainableTokensConfig),
        TokenSettings,
        _tokens,
        ("embeddings of chosen tokens learn", "a vector a token", "with new words; nearest to registers in peft"),
        _reads_words,
    ),
)
TABLE = {row.name: row for row in ROWS}
for _row in ROWS:
    with_registers(_row.config)


def __getattr__(name: str) -> Row:
    if name in TABLE:
        return TABLE[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
