"""The page for people: pictures are chosen, dropped or pasted, and their classes are shown.

`page.html` has what people see. A part that is put into it says where answers come from: a server, or the browser
itself.
"""

from __future__ import annotations

from importlib.resources import files


def page(answering: str, head: str = "") -> str:
    """The page in HTML.

    Args:
        answering: HTML with the script that answers; `page.html` says what that has.
        head: HTML for the head.
    """
    text = files("liftplus.publishing").joinpath("page.html").read_text(encoding="utf-8")
    return text.replace("<!-- head -->\n", head, 1).replace("<!-- answering -->\n", answering, 1)
