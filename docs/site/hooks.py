"""Hooks of mkdocs: the root's Markdown files become pages, and links work on the site as they do on GitHub.

A link of the sources is relative to the file that it stands in, as GitHub reads it. On the site, one to another page
leads to that page, and one to a file that is no page, such as a module, leads to the repository, or is plain text where
the repository's address is not known (`repo_url` in mkdocs.yml).
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
OF_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
"""Markdown files of the root, and the pages that they become."""
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each of the root's Markdown files."""
    for source, page in OF_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Adapt a page's links; what is between fences stays."""
    place = PurePosixPath(page.file.src_uri)
    sources = {made: source for source, made in OF_ROOT.items()}
    source = sources.get(str(place), f"docs/{place}")

    def adapted(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        link = _on_site(target, source, place, files, config.repo_url)
        return text if link is None else f"{image}[{text}]({link})"

    parts = _FENCED.split(markdown)
    parts[::2] = [_LINK.sub(adapted, part) for part in parts[::2]]
    return "".join(parts)


def _on_site(target: str, source: str, place: PurePosixPath, files: Files, repository: str | None) -> str | None:
    """Where a link leads on the site.

    Args:
        target: the link as the source has it.
        source: the file that it stands in, relative to the repository's root.
        place: the page of that file, relative to the site's root.
        files: all files of the site.
        repository: address of the repository, if it is known.

    Returns:
        The link of the page; None if there is nothing that it could lead to.
    """
    name, hash_sign, anchor = target.partition("#")
    if not name or re.match(r"[a-z]+:", target):
        return target
    wanted = os.path.normpath(PurePosixPath(source).parent / name).replace(os.sep, "/")
    page = OF_ROOT.get(wanted, wanted.removeprefix("docs/") if wanted.startswith("docs/") else None)
    file = files.get_file_from_path(page) if page is not None else None
    if file is not None and not file.inclusion.is_excluded():
        return os.path.relpath(file.src_uri, place.parent).replace(os.sep, "/") + hash_sign + anchor
    if not repository:
        return None
    kind = "tree" if (ROOT / wanted).is_dir() else "blob"
    return f"{repository.rstrip('/')}/{kind}/main/{wanted}{hash_sign}{anchor}"
