"""Image classification: folders of images by label, files that list paths and labels, hub sets, drawn images."""

from __future__ import annotations

import hashlib
import inspect
import io
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from regtune.config import Count
from regtune.errors import CheckpointError, DataError, MissingExtraError, shown
from regtune.families import family_of
from regtune.families._family import patch_grid, sides
from regtune.interfaces import Batch, Examples, Modality, Rows, Shown
from regtune.records import write_bytes
from regtune.registers.surgery import backbone_of
from regtune.rows.token_classes import patch_classes
from regtune.tasks.classify import Classification
from regtune.tasks.drawn import SETS, drawn_images
from regtune.tasks.files import cell, hub_records, read_examples, records_of
from regtune.tasks.labelled import LABELS
from regtune.tasks.labels import label_of
from regtune.typed import Checked

if TYPE_CHECKING:
    from PIL import Image

    from regtune.session import Session

IMAGES = ("image", "path", "file", "file_name", "filename", "image_path", "img", "picture")
"""Columns that are looked for, in this order, where the settings name none."""
Source = Path | bytes
"""An image's file, or what is in it."""
_HOW = (
    "Put each image into a folder named after its label (DIR/cat/1.png), or list paths and labels in a .csv or .jsonl "
    "file."
)
_NO_IMAGES = ("thumbs.db", "desktop.ini")
"""Files that systems leave in folders of images."""


@dataclass(frozen=True, kw_only=True)
class ImageSettings(Checked, section="settings"):
    """Which columns hold what, in files that list images."""

    label_column: str | None = None
    """Column of the label; the first of the usual names by default."""
    image_column: str | None = None
    """Column of the image's path, relative to the file that lists it."""
    label_names: tuple[str, ...] = ()
    """What labels 0, 1, ... of the files are called."""
    encoding: str = "auto"
    """Of text files: UTF-8 or, where it isn't valid, latin-1; or a name that Python knows."""
    batch_size: Count = 32
    """Images in a batch at inference."""
    on_bad_record: Literal["raise", "skip", "mend"] = "raise"
    """Stop at the first bad record, or leave it out, count it and list it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledImage:
    """An image with its label, which is None where nobody labelled it."""

    id: str
    source: Source
    size: tuple[int, int]
    """Height and width in pixels."""
    was: tuple[str, ...] = ()
    """What was done to make it an image of three channels, as in "animated: the first frame is read"."""
    label: str | None = None

    @property
    def name(self) -> str:
        """What a person calls it: its file, or its id."""
        return str(self.source) if isinstance(self.source, Path) else self.id


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow:
    """An image that is decoded when its batch is made."""

    id: str
    source: Source
    label: int | None = None


class ImageClassification(Classification):
    """One label an image."""

    name: ClassVar[str] = "images"
    title: ClassVar[str] = "image classification"
    head: ClassVar[str] = "AutoModelForImageClassification"
    modality: ClassVar[Modality] = "image"
    settings: ClassVar[type] = ImageSettings
    needs: ClassVar[tuple[Literal["pad", "sep"], ...]] = ()
    examples: ClassVar[str] = "images"
    given: ClassVar[tuple[str, ...]] = ("image",)
    perturbs: ClassVar[tuple[str, ...]] = ()

    def read(
        self, names: Sequence[str], settings: Any, *, limit: int | None = None, training: bool = False
    ) -> Examples:
        """Reads folders `DIR/LABEL/IMAGE`, files of paths and labels, `embedded:train`, `hub:NAME[:CONFIG]:SPLIT`.

        Of a folder the labels come in turn, so that a limit leaves some of each. Every image is decoded once, so that a
        broken one is found before training.

        Raises:
            DataError: an image or file that can't be read, an empty folder, a column or a label that is missing.
        """
        del training
        found = read_examples(
            names,
            _records,
            _example,
            settings,
            limit=limit,
            one="labelled image",
            many=self.examples,
        )
        labels = dict(Counter(str(item.label) for item in found.items))
        odd = Counter(what for item in found.items for what in item.was)
        notes = tuple(f"{count} of {len(found)} images: {what}." for what, count in odd.items())
        return replace(found, notes=(*found.notes, *notes), facts={**found.facts, "labels": labels})

    def rows(self, examples: Examples, session: Session, *, training: bool = False) -> Rows[Any]:
        """A row an image, resized by the model's image processor.

        Raises:
            DataError: an image without a label among those that have one, or one with a label that the model lacks.
            CheckpointError: a processor that makes images which the model can't read.
        """
        items: Sequence[LabelledImage] = examples.items
        labels = None if session.task is None else self.numbered(items, session, training=training)
        rows = [
            ImageRow(id=item.id, source=item.source, label=None if labels is None else labels[index])
            for index, item in enumerate(items)
        ]
        processor, backbone = session.reader, backbone_of(session.model)
        family = family_of(backbone.config, "parts")
        shape = _pixels(processor, rows[:1]).shape[1:]
        _check_shape(shape, backbone, session.name)
        grid = patch_grid(backbone.config, shape[1], shape[2])
        resized = [item for item in items if item.size != tuple(shape[1:])]
        notes = []
        if resized:
            first = f"{resized[0].id}, {resized[0].size[0]} × {resized[0].size[1]}"
            notes.append(
                f"{len(resized)} of {len(items)} images have another size than {shape[1]} × {shape[2]} pixels (height "
                f"× width; the first: {first}) and were resized."
            )
        length = family.leading + grid[0] * grid[1]
        return Rows(
            rows=rows,
            lengths=[length] * len(rows),
            example=list(range(len(rows))),
            collate=partial(_collate, processor, length),
            roles=partial(_roles, family.leading, grid),
            pictures=partial(_pictures, processor),
            notes=tuple(notes),
            facts={"resized_images": len(resized), "patch_grid": list(grid)},
        )

    def text(self, example: LabelledImage) -> str:
        """Its name."""
        return example.id

    def example(self, record: Mapping[str, Any], settings: Any) -> LabelledImage:
        """From `image` (or the column that the settings name): a path, a file's bytes, or an image of Pillow's.

        A path that is given as a `text` will do.
        """
        if settings.image_column is None and "text" in record and not any(name in record for name in IMAGES):
            record = {**record, "image": record["text"]}
        found = cell(record, settings.image_column, IMAGES, "image_column", "the image given")
        source = _source(found, "the image given")
        name = str(source) if isinstance(source, Path) else str(record.get("id", "0"))
        return _labelled(str(record.get("id", name)), source, None, name)

    def listed(self, item: Any, folder: Path | None = None) -> dict[str, Any]:
        """See `Task.listed`; an image is a path, a file's bytes or an image of Pillow's, which are kept as files."""
        record = super().listed(item, folder)
        if folder is None or "image" not in record:
            return record
        source = _source(record["image"], "the image given")
        if isinstance(source, bytes):
            place = folder / hashlib.sha256(source).hexdigest()[:16]
            source = write_bytes(place, source)
        return {**record, "image": str(source.resolve())}

    def records(self, path: Path) -> list[Mapping[str, Any]] | None:
        """An image file, or all files of a folder; paths in a file that lists images are relative to it."""
        if path.is_dir():
            files = [one for one in sorted(path.rglob("*")) if one.is_file() and not _hidden(one, path)]
            return [{"id": one.relative_to(path).as_posix(), "image": one} for one in files]
        if path.suffix.lower() in _suffixes():
            return [{"id": path.name, "image": path}]
        return [_beside(record, path.parent) if isinstance(record, dict) else record for _, record in records_of(path)]

    def shown(self, rows: Rows[Any], examples: Examples, session: Session) -> Shown:
        """See `Task.shown`; with what was done to the image."""
        said = super().shown(rows, examples, session)
        odd = tuple(f"The image: {what}." for what in examples.items[0].was)
        return replace(said, notes=(*said.notes, *odd, *rows.notes))


# Reading


def _records(name: str, settings: ImageSettings) -> Iterator[tuple[str, Any]]:
    """Every record of a set behind its place; a `DataError` in place of one says what is wrong."""
    if name in SETS:
        _pillow()
        for id_, label, file in drawn_images(name):
            yield id_, {"id": id_, "image": file, "label": label}
    elif name.startswith("hub:"):
        yield from hub_records(name, _undecoded)
    elif Path(name).is_dir():
        yield from _in_folder(Path(name))
    else:
        for place, record in records_of(Path(name), encoding=settings.encoding):
            if isinstance(record, str):
                yield place, DataError(f"{place}: {shown(record)} is no record. {_HOW}")
            else:
                broken = isinstance(record, DataError)
                yield place, record if broken else _beside(record, Path(name).parent, settings.image_column)


def _undecoded(found: Any) -> Any:
    """A hub set whose images are what their files hold, so that each is decoded here."""
    import datasets

    for column, kind in list(found.features.items()):
        if isinstance(kind, datasets.Image):
            found = found.cast_column(column, datasets.Image(decode=False))
    return found


def _example(id_: str, record: Mapping[str, Any], place: str, settings: ImageSettings) -> LabelledImage:
    source = _source(cell(record, settings.image_column, IMAGES, "image_column", place), place)
    label = label_of(cell(record, settings.label_column, LABELS, "label_column", place), place, settings.label_names)
    return _labelled(str(record.get("id", id_)), source, label, place)


def _in_folder(folder: Path) -> Iterator[tuple[str, Any]]:
    """The images of `folder/LABEL/`, the labels in turn."""
    classes = {one.name: one for one in sorted(folder.iterdir()) if one.is_dir() and not one.name.startswith(".")}
    astray = next((one for one in sorted(folder.iterdir()) if one.suffix.lower() in _suffixes()), None)
    if astray is not None:
        yield str(astray), DataError(f"{astray} lies in no label's folder. {_HOW}")
    if not classes:
        yield str(folder), DataError(f"{folder} holds no folder of a label. {_HOW}")
    waiting: list[tuple[int, str, Any]] = []
    for label, place in classes.items():
        files = [one for one in sorted(place.rglob("*")) if one.is_file() and not _hidden(one, folder)]
        if not files:
            yield str(place), DataError(f"{place} holds no image. Put images of {label!r} there, or remove the folder.")
        for number, file in enumerate(files):
            record = {"id": file.relative_to(folder.parent).as_posix(), "image": file.resolve(), "label": label}
            waiting.append((number, str(file), record))
    for _, where, record in sorted(waiting, key=lambda each: each[0]):
        yield where, record


def _hidden(file: Path, folder: Path) -> bool:
    inside = file.relative_to(folder).parts
    return any(part.startswith(".") for part in inside) or file.name.lower() in _NO_IMAGES


def _suffixes() -> frozenset[str]:
    return frozenset(_pillow().registered_extensions())


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "images", "Reading images") from error
    return Image


def _beside(record: Mapping[str, Any], folder: Path, column: str | None = None) -> Mapping[str, Any]:
    """The record with paths from a folder on."""
    names = IMAGES if column is None else (column,)
    texts = {name: value for name, value in record.items() if name in names and isinstance(value, str) and value}
    return {**record, **{name: folder / Path(value).expanduser() for name, value in texts.items()}}


def _source(value: Any, place: str) -> Source:
    """What a record gives as its image: a path, a file's bytes, or an image of Pillow's."""
    if isinstance(value, Mapping):  # a hub set's: what the file holds, or where it is
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, (str, Path)) and str(value).strip():
        return Path(value).expanduser()
    if hasattr(value, "save") and hasattr(value, "mode"):
        file = io.BytesIO()
        value.save(file, "TIFF" if value.mode == "CMYK" else "PNG")
        return file.getvalue()
    raise DataError(f"{place}: the image is {shown(value)}; the path of an image file is needed.")


def _labelled(id_: str, source: Source, label: str | None, place: str) -> LabelledImage:
    image, was = opened(source, place)
    return LabelledImage(id=id_, source=source, size=(image.height, image.width), was=was, label=label)


def opened(source: Source, place: str) -> tuple[Image.Image, tuple[str, ...]]:
    """An image with three channels, upright, and what was done to make it one.

    Args:
        source: its file, or what is in it.
        place: how messages call it.

    Raises:
        DataError: there is no such file, it is no image or a broken one, or one with numbers that are no colours.
    """
    Image = _pillow()
    from PIL import ImageOps

    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as found:
                frames = getattr(found, "n_frames", 1)
                found.load()
                image = ImageOps.exif_transpose(found)
    except FileNotFoundError as error:
        raise DataError(
            f"{place}: there is no image {error.filename}. Check the path; it is relative to the list."
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{place}: {error} Make the image smaller.") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{place}: this is no image that Pillow reads. Remove it, or save it as PNG.") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(f"{place}: the image is broken ({error}). Copy or download it again.") from error
    was = ["animated: the first frame is read"] if frames > 1 else []
    if image.mode in ("I", "F"):
        raise DataError(
            f"{place}: the image holds numbers of mode {image.mode}, which are no colours. Save it with 8 or 16 bits."
        )
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint16)
        image = Image.fromarray((wide >> 8).astype(np.uint8))
        was.append("16 bits a channel, of which the upper 8 are read")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
        was.append("with transparency, laid on white")
    elif image.mode in ("1", "L"):
        was.append("one channel, read as grey")
    elif image.mode not in ("RGB", "P"):
        was.append(f"{image.mode}, converted to RGB")
    return image.convert("RGB"), tuple(was)


# Rows


def _pixels(processor: Any, rows: Sequence[ImageRow], **options: Any) -> torch.Tensor:
    """What the model reads, `[rows, channels, height, width]`."""
    images = [opened(row.source, row.id)[0] for row in rows]
    found: torch.Tensor = processor(images, return_tensors="pt", **options)["pixel_values"]
    return found


def _pictures(processor: Any, rows: Sequence[ImageRow]) -> npt.NDArray[np.uint8]:
    pixels = _pixels(processor, rows, do_rescale=False, do_normalize=False)
    return pixels.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8).numpy()


def _check_shape(shape: Sequence[int], backbone: Any, name: str) -> None:
    config = backbone.config
    if shape[0] != config.num_channels:
        raise CheckpointError(f"{name} reads {config.num_channels} channels, and its image processor gives {shape[0]}.")
    wanted = sides(config.image_size)
    fixed = "interpolate_pos_encoding" in inspect.signature(backbone.forward).parameters
    if fixed and tuple(shape[1:]) != wanted:
        raise CheckpointError(
            f"The image processor of {name} makes images of {shape[1]} × {shape[2]} pixels, and the model reads "
            f"{wanted[0]} × {wanted[1]}. Set size (or crop_size) in its preprocessor_config.json."
        )


def _collate(processor: Any, length: int, rows: Sequence[ImageRow], pad_to: int | None) -> Batch:
    del pad_to  # all images have one length
    batch = {
        "pixel_values": _pixels(processor, rows),
        "attention_mask": torch.ones(len(rows), length, dtype=torch.long),
    }
    if rows[0].label is not None:
        batch["labels"] = torch.tensor([row.label for row in rows])
    return batch


def _roles(leading: int, grid: tuple[int, int], rows: Sequence[ImageRow]) -> Batch:
    classes = patch_classes(leading, grid[0] * grid[1]).repeat(len(rows), 1)
    return {"token_classes": classes, "patch_grid": torch.tensor([grid] * len(rows))}
