"""render.py SOURCE TARGET: the site's one page, from its title line and its text."""

import html
import pathlib
import sys

source, target = map(pathlib.Path, sys.argv[1:])
title, _, text = source.read_text(encoding="utf-8").partition("\n")
target.parent.mkdir(parents=True, exist_ok=True)
target.write_text(
    "<!doctype html>\n"
    f"<title>{html.escape(title)}</title>\n"
    f"<h1>{html.escape(title)}</h1>\n"
    f"<p>{html.escape(text.strip())}</p>\n",
    encoding="utf-8",
)
