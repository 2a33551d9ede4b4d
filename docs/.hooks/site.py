"""MkDocs hooks: pages link to files of the repository; reference pages list the names in a package's ``__all__``."""

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINKED = (
    "figures/gallery/*",
    "benchmarks/*.md",
    "benchmarks/records/*",
    "benchmarks/records/*/*",
    "notebooks/*.md",
    "models/embedded/README.md",
    "interventions/engines/README.md",
)
sys.path.insert(0, str(ROOT))


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to."""
    for pattern in LINKED:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                name = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at the added files, and write out ``[[public PACKAGE]]``."""
    if "/" not in page.file.src_uri:
        markdown = re.sub(r"\]\(\.\./(figures/gallery|benchmarks|notebooks|models|interventions)", r"](\1", markdown)
    else:
        markdown = re.sub(r"\]\(((?:\.\./)+)docs/", r"](\1", markdown)
        markdown = re.sub(r"\]\((?!https?:|#)(?:\.\./)*[\w./-]*\.(?:py|ipynb)\)", "]()", markdown).replace("]()", "]")
    return re.sub(r"\[\[public ([\w.]+)\]\]", lambda found: public(found[1]), markdown)


def public(package: str) -> str:
    """One entry for each public function and class of a package, from the module that defines it."""
    module = importlib.import_module(package)
    entries = []
    for name in sorted(getattr(module, "__all__", ())):
        found = inspect.unwrap(getattr(module, name))
        if inspect.isclass(found) or inspect.isfunction(found):
            entries.append(f"::: {found.__module__}.{found.__qualname__}")
    return "\n\n".join(entries)
