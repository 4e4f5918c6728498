"""Text from anywhere, made fit to be read on a terminal: one line, of a length, without secrets.

Names in files are whatever somebody wrote: with line breaks and terminal escapes, ten thousand
characters long, or a URL with a password.
"""

import re

__all__ = ["first_line", "legible", "mask"]

LONGEST = 1000
"""Characters of a line at most."""
# Of a text of any length, so many characters at each end are looked at.
_END = 20_000
_HEAD = LONGEST * 3 // 5

# Of a URL's query: other text that has such words in it stays as it is.
_SECRET_OPTIONS = re.compile(
    r"([?&][^=&\s]{0,100}(?:password|passwd|pwd|secret|token)[^=&\s]{0,100}=)[^&\s\"']*",
    re.IGNORECASE,
)
# A bound on each part keeps the search linear in the text's length.
# Users' names may have an @, as Azure's do; passwords may be tokens of thousands of characters.
_USER_AND_PASSWORD = re.compile(r"(://[^:/?#\s]{0,200}):\S{0,4000}@")
# What a web address has alone before its host is a token; a database's is a user.
_TOKEN = re.compile(r"(https?://)[^:/?#@\s]{1,1000}@", re.IGNORECASE)
# Controls, of which terminals make colours, titles and cleared screens; ends of lines; what turns
# the direction of text around; and halves of surrogate pairs, which cannot be printed.
_NOT_SHOWN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_LINE_BREAK = re.compile(r"[ \t]?[\r\n]+[ \t]*")


def mask(url: str) -> str:
    """Return ``url``, or a text that contains one, with passwords and tokens as ``***``."""
    url = _TOKEN.sub(r"\1***@", _USER_AND_PASSWORD.sub(r"\1:***@", url))
    return _SECRET_OPTIONS.sub(r"\1***", url)


def legible(text: str) -> str:
    """Return a text as one line of at most ``LONGEST`` characters.

    Line breaks become spaces, other controls are written as escapes, passwords and tokens in URLs
    are masked, and of what is longer the middle is left out: a message begins with where, and ends
    with what would be valid.
    """
    line = _LINE_BREAK.sub(" ", _shortened(text, _END, _END).strip())
    line = _shortened(mask(line), LONGEST, LONGEST)
    line = _NOT_SHOWN.sub(lambda match: match.group().encode("unicode_escape").decode(), line)
    return _shortened(line, _HEAD, LONGEST - _HEAD - 1)


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, without its full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _shortened(text: str, head: int, tail: int) -> str:
    return text if len(text) <= head + tail + 1 else f"{text[:head]}…{text[-tail:]}"
