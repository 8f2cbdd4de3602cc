"""What `make docs` does beside mkdocs itself: pages that are made, links into the repository, and no network.

- `troubleshooting.md` is made from the sources (`error_sentences.py`), the changelog and CONTRIBUTING are those of the
  repository, and each source file that a page links to becomes a page.
- A link to a file that is on the site leads to its page; one to something else (a folder, data) becomes plain text.
- A page that would load anything from another host stops the build.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import error_sentences
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
MADE = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages made of files of the repository's root."""
PLACES = {name: place for place, name in MADE.items()} | {"README.md": "index.md"}
"""Files of the repository's root, and where a link to them leads."""
LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
FENCE = re.compile(r"(^````?.*?^````?$)", re.MULTILINE | re.DOTALL)
LOADS = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\s\"'>]+"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|icon|preconnect|preload|manifest))[^>]*\bhref=[\"']?(?:https?:)?//[^\s\"'>]+"
    r"|@import\s+(?:url\()?[\"']?(?:https?:)?//[^\s\"')]+"
    r"|url\(\s*[\"']?(?:https?:)?//[^\s\"')]+"
)
"""What a browser fetches by itself; a link that a person clicks is none of it."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    pages = {"troubleshooting.md": error_sentences.page()}
    pages |= {place: (ROOT / name).read_text(encoding="utf-8") for place, name in MADE.items()}
    texts = [*pages.values(), *(file.content_string for file in files.documentation_pages())]
    for source in sorted(_linked_sources(texts)):
        code = (ROOT / source).read_text(encoding="utf-8")
        pages[f"{source}.md"] = f"---\nsearch:\n  exclude: true\n---\n# {source}\n\n````python\n{code}````\n"
    for place, content in pages.items():
        files.append(File.generated(config, place, content=content))
    return files


def _linked_sources(texts: list[str]) -> set[str]:
    """Python files of the repository that a page links to, as paths from the root."""
    found = {target.lstrip("./") for text in texts for _, target, _ in LINK.findall(text) if target.endswith(".py")}
    return {path for path in found if (ROOT / path).is_file()}


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Turns links into the repository into links on the site."""
    own = page.file.src_uri
    folder = "." if own in MADE else posixpath.dirname(f"docs/{own}")

    def turned(link: re.Match[str]) -> str:
        text, target, anchor = link["text"], link["target"], link["anchor"] or ""
        if "://" in target or target.startswith("mailto:"):
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        place = PLACES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"{path}.md")
        if files.get_file_from_path(place) is None:
            return text
        return f"[{text}]({os.path.relpath(place, posixpath.dirname(own) or '.')}{anchor})"

    parts = FENCE.split(markdown)
    return "".join(part if index % 2 else LINK.sub(turned, part) for index, part in enumerate(parts))


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Refuses a site that loads anything from the network."""
    site = Path(config.site_dir)
    loads = {
        f"{path.relative_to(site)}: {found[0]}"
        for path in [*site.rglob("*.html"), *site.rglob("*.css")]
        for found in LOADS.finditer(path.read_text(encoding="utf-8"))
    }
    if loads:
        raise PluginError("The site would load from other hosts:\n" + "\n".join(sorted(loads)))
