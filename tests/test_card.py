"""The export's card: text of a stranger in it is shown as it is, and is no link, picture, heading or HTML."""

import html
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from distgan.commands.export import _json, plain
from distgan.errors import printable

EVIL = (
    "<img src=x onerror=alert(1)>",
    "[here](javascript:alert(1))",
    "![x](https://example.com/x.png)",
    "<javascript:alert(1)>",
    "robin\n# A heading",
    "robin\n\n<script>alert(1)</script>",
    "a | b | c",
    "`code` ``` ~~~",
    "**bold** __bold__ ~~gone~~ a_b_c",
    "&lt;b&gt; &amp; &#60;",
    "\x1b[2J\x07 \u202e",
    "\\ \\` \\[x](y)",
    "[x]: https://example.com",
    "x\r\n- item",
    "<!-- ",
    "Cygnus olor (Gmelin, 1789)",
)


def shown(text):
    """What a reader is to see of it."""
    return html.escape(" ".join(printable(text).split())).replace("&#x27;", "'")


def rendered(text):
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)


@pytest.mark.parametrize("text", EVIL)
def test_known_tricks(text):
    assert rendered(f"- 0: {plain(text)} (5)") == f"<ul>\n<li>0: {shown(text)} (5)</li>\n</ul>\n"
    assert rendered(f"# {plain(text)}: a generator") == f"<h1>{shown(text)}: a generator</h1>\n"
    table = rendered(f"| metric | score |\n|---|---|\n| {plain(text)} | 1 |")
    assert f"<td>{shown(text)}</td>\n<td>1</td>" in table


@given(st.text(alphabet=st.sampled_from("<>[]()!`*_~|\\#&;:\n ab1-+.=\"'/"), max_size=30))
def test_any_text(text):
    assert rendered(f"- 0: x{plain(text)}x (5)") == f"<ul>\n<li>0: x{shown(text)}x (5)</li>\n</ul>\n"


@pytest.mark.parametrize("text", EVIL)
def test_blocks_of_json(text):
    written = _json({text: [text]})
    assert json.loads(written) == {text: [text]}
    assert not set("<`") & set(written)
