"""What MkDocs is told beyond mkdocs.yml: files outside docs/ that are pages of the site, and links to them.

So a page has links that lead somewhere in the repository as well as on the site, and says nothing twice.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

# The pages that lie elsewhere in the repository.
PAGES = {
    "project/changelog.md": "CHANGELOG.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/security.md": "SECURITY.md",
    **{f"stores/{name}.md": f"adapters/{name}/README.md" for name in ("etcd", "file", "postgres", "redis", "s3")},
}
# What links from a page to a file that is none mean on the site.
INSTEAD = {
    "README.md": "index.md",
    "conformance/README.md": "test-your-own-store.md",
    "core/src/dagonizer/contracts.py": "reference/contract.md",
    "core/src/dagonizer/errors.py": "reference/errors.md",
    "core/src/dagonizer/schema/checkpoint-1.json": "wire-format.md",
}
_BY_SOURCE = {source: page for page, source in PAGES.items()} | INSTEAD

_FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
# Links that name the page itself, or the next, load nothing.
_LOADED = re.compile(
    r"""<(?:script|img|iframe|source|link(?![^>]*rel=["']?(?:canonical|prev|next)))\b"""
    r"""[^>]*(?:src|href)=["']?(?:https?:)?//[^>]*>"""
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to pages of the site, outside of code."""
    here = PurePosixPath(page.file.src_uri)
    source = PurePosixPath(PAGES.get(str(here), f"docs/{here}"))

    def on_the_site(link: re.Match[str]) -> str:
        target = PurePosixPath(os.path.normpath(source.parent / link[0])).as_posix()
        found = _BY_SOURCE.get(target) or target.removeprefix("docs/")
        return os.path.relpath(found, here.parent)

    parts = _FENCED.split(markdown)
    return "".join(part if index % 2 else _LINK.sub(on_the_site, part) for index, part in enumerate(parts))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that would load something from another host."""
    loaded = _LOADED.search(output)
    if loaded is not None:
        raise PluginError(f"{page.file.src_uri} would load something from another host: {loaded[0]}")
    return output
