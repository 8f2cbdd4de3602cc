"""The explorer's page in Gradio: controls, and one place that shows what the explorer says. It keeps nothing itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from regtune.analyses.attribution.attribute import METHODS
from regtune.app.explorer import CHOICES, Change, Explorer
from regtune.errors import RegtuneError
from regtune.interfaces import Block
from regtune.records import plain
from regtune.report.rendering import SCOPE, fragment, render, scoped_style

VIEWS = ("predictions", "relevance", "attention", "norms", "lens")
_MEAN = "mean"
_CLICKS = """
const choose = (event) => {
  const token = event.target.closest('[data-place]');
  const row = event.target.closest('tbody tr');
  if (token) trigger('pick', {place: token.dataset.place});
  else if (row) trigger('pick', {row: row.rowIndex - 1});
};
element.addEventListener('click', choose);
element.addEventListener('keydown', (event) => {
  if (!['Enter', ' '].includes(event.key)) return;
  if (event.target.dataset.place) event.preventDefault();
  choose(event);
});
const reachable = () => element.querySelectorAll('.rows tbody tr').forEach((row) => { row.tabIndex = 0; });
watch('value', reachable);
reachable();
"""
_STYLE = f"""
.{SCOPE} {{ color: var(--ink); padding: 0.25rem 0; }}
.{SCOPE} h4 {{ font-size: 1.05rem; font-weight: 650; margin: 1.25rem 0 0.4rem; }}
.{SCOPE} a {{ color: var(--c0); text-decoration: underline; }}
.{SCOPE} input[type=radio] {{ appearance: auto; }}
.{SCOPE} [data-place], .rows tbody tr {{ cursor: pointer; }}
"""
"""What Gradio's own styles take from blocks, and what can be clicked."""


def make_page(explorer: Explorer) -> Any:
    """The page; `head` goes into `launch` or `mount_gradio_app`."""
    title = "regtune explore: " + " and ".join(session.name for session in explorer.sessions)
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {escape(title)}\n{escape(_sentence(explorer))}")
        fields: list[Any] = [
            gr.Image(type="filepath", label=name, elem_id=f"given-{name}", height=240)
            if name == "image"
            else gr.Textbox(
                value="",
                label=name if name != "pair" else "second text (may be left empty)",
                lines=4 if name in ("context", "text") else 1,
                elem_id=f"given-{name}",
            )
            for name in explorer.fields
        ]
        with gr.Row(visible=bool(explorer.registers)):
            on = gr.Checkbox(value=True, label="registers on", elem_id="registers-on")
            out = gr.CheckboxGroup(
                choices=[(name, key) for key, name in explorer.registers.items()],
                label="knock out (no token attends to it)",
                elem_id="knocked-out",
            )
        with gr.Row():
            view = gr.Radio(choices=list(VIEWS), value=VIEWS[0], label="show", elem_id="view", scale=4)
            look = gr.Button("Look", variant="primary", elem_id="look", scale=1)
        with gr.Row(visible=False) as for_relevance:
            methods = gr.Dropdown(choices=list(METHODS), value=["attnlrp"], multiselect=True, label="methods")
            target = gr.Textbox(value="", label="target (empty: what the model says)", elem_id="target")
        with gr.Row(visible=False) as for_attention:
            layer = gr.Dropdown(choices=list(range(explorer.layers)), value=0, label="layer", elem_id="layer")
            head = gr.Dropdown(choices=[_MEAN, *range(explorer.heads)], value=_MEAN, label="head", elem_id="head")
            place = gr.Dropdown(
                choices=[("first token", "0")], value="0", label="token", elem_id="token", allow_custom_value=True
            )  # its choices follow the text, so any value is taken and looked up there
        shown = gr.HTML(js_on_load=_CLICKS, apply_default_css=False, elem_id="shown")
        controls = [view, on, out, methods, target, layer, head, place, *fields]

        def show(*values: Any) -> tuple[str, Any]:
            return _show(explorer, *values)

        def show_place(event: gr.EventData, *values: Any) -> tuple[str, Any]:
            chosen = getattr(event, "place", values[7])
            return _show(explorer, *values[:7], chosen, *values[8:])

        results = [shown, place]
        look.click(show, controls, results)
        for field in fields:
            if explorer.reads_images:
                field.change(show, controls, results)
            else:
                field.submit(show, controls, results)
        for control in (on, out, methods, layer, head, place):
            control.input(show, controls, results)
        view.input(lambda name: [gr.update(visible=name == each) for each in ("relevance", "attention")], view,
                   [for_relevance, for_attention]).then(show, controls, results)  # fmt: skip
        shown.pick(show_place, controls, results)
        if explorer.sets:
            _browse(explorer, fields)
    return page


def _browse(explorer: Explorer, fields: Sequence[Any]) -> None:
    """A run's examples; a click on a row puts it into the fields."""
    with gr.Accordion("Examples of the run, with what it predicted", open=False, elem_id="browse"):
        with gr.Row():
            name = gr.Dropdown(choices=list(explorer.sets), value=explorer.sets[0], label="set")
            kinds = CHOICES if len(explorer.cells) > 1 else CHOICES[:3]
            which = gr.Radio(choices=list(kinds), value=kinds[0], label="which", elem_id="which")
            search = gr.Textbox(value="", label="search", elem_id="search")
        listed = gr.HTML(js_on_load=_CLICKS, apply_default_css=False, elem_id="listed")
        controls = [name, which, search]

        def show(*values: str) -> str:
            try:
                return f'<div class="rows">{as_html([explorer.examples(*values).block], "examples")}</div>'
            except RegtuneError as error:
                return _refusal(error)

        def pick(event: gr.EventData, *values: str) -> Any:
            found = explorer.examples(*values)
            row = getattr(event, "row", -1)
            given: dict[str, Any] = explorer.given(values[0], found.ids[row]) if 0 <= row < len(found.ids) else {}
            if "image" in given:
                given = {"image": _decoded(given["image"])}
            filled = [given.get(field, gr.skip()) for field in explorer.fields]
            return filled if len(filled) > 1 else filled[0]

        for change in (name.input, which.input, search.submit):
            change(show, controls, listed)
        gr.on(triggers=None, fn=show, inputs=controls, outputs=listed)
        listed.pick(pick, controls, list(fields))


def _decoded(file: str) -> Any:
    """An image as Gradio takes it from anywhere: files it only takes from its own folders."""
    from PIL import Image

    with Image.open(file) as image:
        return image.convert("RGB")


def _show(
    explorer: Explorer,
    view: str,
    on: bool,
    out: Sequence[str],
    methods: Sequence[str],
    target: str,
    layer: int,
    head: str | int,
    place: str,
    *texts: str,
) -> tuple[str, Any]:
    """The HTML of a view, and the tokens that can be chosen."""
    given = {name: text or "" for name, text in zip(explorer.fields, texts, strict=True)}  # None: no image yet
    change = Change(off=not on, knocked_out=tuple(out))
    places: Any = gr.skip()
    try:
        if view == "attention":
            found = explorer.places(given, change)
            place = place if place in found else "0"
            places = gr.update(choices=[(f"{key} {name}", key) for key, name in found.items()], value=place)
            number = None if head == _MEAN else int(head)
            blocks = explorer.attention(given, change, layer=int(layer), head=number, place=place)
        elif view == "relevance":
            blocks = explorer.relevance(given, change, methods, target)
        else:
            blocks = {"predictions": explorer.predictions, "norms": explorer.norms, "lens": explorer.lens}[view](
                given, change
            )
        return as_html(blocks, view), places
    except RegtuneError as error:
        return _refusal(error), places


def _sentence(explorer: Explorer) -> str:
    models = [
        f"{session.name}: {type(session.model).__name__}, {Change().words(session)}." for session in explorer.sessions
    ]
    return " ".join(models)


def _refusal(error: RegtuneError) -> str:
    return f'<div class="{SCOPE}"><p class="asides" role="alert">{_inert(escape(str(error)))}</p></div>'


def as_html(blocks: Sequence[Block], name: str) -> str:
    """Blocks as the report draws them, under links that save them as a page, as pictures and as JSON.

    Args:
        blocks: what is shown.
        name: of the files.
    """
    named = [replace(block, name=f"{name}-{number}") for number, block in enumerate(blocks, start=1)]
    files: dict[str, str] = {}
    html = render(named, name, files)
    page = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title></head><body>'
        f"{fragment(blocks)}</body></html>"
    )
    saved = {f"{name}.html": page, f"{name}.json": as_json(blocks)}
    saved |= {path.rpartition("/")[2]: svg for path, svg in files.items() if path.endswith(".svg")}
    links = " · ".join(_download(file, text) for file, text in saved.items())
    return f'<div class="{SCOPE}">\n{_inert(html)}<p class="note">Save: {links}</p></div>'


def as_json(blocks: Sequence[Block]) -> str:
    """Blocks as JSON: titles, texts, tables and what figures were made of."""
    found = []
    for block in blocks:
        one: dict[str, Any] = {"kind": block.kind, "title": block.title, "text": block.text}
        if block.kind == "table":
            one |= {"columns": block.table.header, "rows": block.rows}
        found.append(one | ({} if block.data is None else {"data": block.data}))
    return json.dumps(plain(found), ensure_ascii=False, indent=1)


_KINDS = {"html": "text/html", "json": "application/json", "svg": "image/svg+xml"}


def _download(file: str, text: str) -> str:
    raw = base64.b64encode(text.encode(errors="backslashreplace")).decode()
    kind = _KINDS[file.rpartition(".")[2]]
    return f'<a download="{escape(file)}" href="data:{kind};charset=utf-8;base64,{raw}">{escape(file)}</a>'


def _inert(html: str) -> str:
    """HTML in which nothing is taken for a template: Gradio's HTML is one, and texts may hold `{{` or `${`."""
    return html.replace("{{", "&#123;&#123;").replace("${", "&#36;{")


def head() -> str:
    """What the page's head needs."""
    return f"<style>{scoped_style()}{_STYLE}</style>"
