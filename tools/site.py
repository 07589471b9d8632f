"""A hook of mkdocs (mkdocs.yml): anchors of headings are those of GitHub, as links name them."""

import re
from typing import Any


def on_config(config: Any) -> Any:
    """Called by mkdocs when it has read its configuration."""
    config["mdx_configs"].setdefault("toc", {})["slugify"] = _anchor
    return config


def _anchor(heading: str, _separator: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
