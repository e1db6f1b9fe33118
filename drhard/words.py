"""Split a text into words for BM25, as Lucene's analyzers do.

English is split as by EnglishAnalyzer: words by Unicode's rules (UAX #29), without a possessive 's, in lower case, cut
by Porter's stemmer. "U.S.", "1.5", "don't" and "k" are words. :mod:`drhard.bm25` removes the 33 stop words.

Scripts without blanks between words are split as by CJKAnalyzer, into pairs of neighbouring characters: 東京都 gives
東京 and 京都. Full-width forms become the usual ones.

Three things differ from Lucene. It takes a phrase of Thai, Lao, Khmer or Burmese for one word; we split these scripts
into pairs too. Composed and decomposed letters are the same here (NFC), and so are ’ and '. Emoji are not words.
"""

import re
import sys
import unicodedata
from collections.abc import Callable
from functools import cache

import Stemmer

# Scripts without blanks: Han, Hiragana, Katakana and Hangul, as in Lucene. Then the scripts of UAX #14's class SA:
# Thai, Lao, Burmese, Khmer, Tai Le, New Tai Lue, Tai Tham, Tai Viet, Ahom.
_UNSPACED = (
    (0x1100, 0x11FF),
    (0x3005, 0x3007),
    (0x3021, 0x3035),
    (0x3038, 0x30FF),
    (0x3131, 0x318E),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA960, 0xA97C),
    (0xAC00, 0xD7FB),
    (0xF900, 0xFAFF),
    (0x1AFF0, 0x1B16F),
    (0x20000, 0x3FFFF),
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x1950, 0x19DF),
    (0x1A20, 0x1AAF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAADF),
    (0x11700, 0x1174F),
)
_FIRST_UNSPACED = "\u0e00"

# Part of a word between two letters, or between two digits: MidLetter, MidNum and MidNumLet of UAX #29.
_IN_LETTERS = "'.:·\u0387\u055f\u05f4\u2018\u2019\u2024\u2027"
_IN_DIGITS = "'.,;\u037e\u0589\u060c\u060d\u066c\u07f8\u2018\u2019\u2024\u2044"

_ASCII_WORD = re.compile(
    r"(?=_*[a-z0-9])\w+(?:(?:(?<=[a-z])['.:](?=[a-z])|(?<=[0-9])['.,;](?=[0-9]))\w+)*", re.ASCII
).findall
_NAME_PARTS = re.compile(r"_|(?<![0-9])[.:]|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WIDE = re.compile("[\uff01-\uff9f]+")  # full-width ASCII, half-width Katakana


def split(text: str) -> list[str]:
    """Return the words of a text in order, in lower case, not yet stemmed."""
    text = text.lower()
    if text.isascii():
        words = _ASCII_WORD(text)
    else:
        text = unicodedata.normalize("NFC", text).replace("’", "'")
        text = _WIDE.sub(lambda wide: unicodedata.normalize("NFKC", wide[0]).lower(), text)
        find, pieces = _unicode_words()
        words = []
        for word in find(text):
            if word < _FIRST_UNSPACED or len(characters := pieces(word)) < 2:
                words.append(word)
            else:
                words.extend(map("".join, zip(characters, characters[1:], strict=False)))
    return [word[:-2] if word.endswith("'s") else word for word in words] if "'s" in text else words


def split_code(text: str) -> list[str]:
    """Return the words of source code: as :func:`split`, and names are split at ``_``, at dots and at capitals."""
    return split(_NAME_PARTS.sub(" ", text))


def stem(word: str) -> str:
    """Return the stem of a word. A word of one or two letters is its own stem."""
    # Snowball's version of Porter's stemmer cuts "us" to "u". Porter's own program and Lucene's do not.
    return word if len(word) < 3 else _stemmer().stemWord(word)


@cache
def _stemmer() -> Stemmer.Stemmer:
    return Stemmer.Stemmer("porter")


@cache
def _unicode_words() -> tuple[Callable[[str], list[str]], Callable[[str], list[str]]]:
    """Return two functions: one finds words and runs of an unspaced script, the other splits such a run."""
    letters: list[int] = []
    digits: list[int] = []
    joining: list[int] = []
    marks: list[int] = []
    unspaced: list[int] = []
    in_unspaced = {code for first, last in _UNSPACED if last < 0x10000 for code in range(first, last + 1)}
    for code in range(0x10000):
        kind = unicodedata.category(chr(code))
        if kind[0] == "M" or (kind == "Cf" and code != 0x200B):  # the zero-width blank separates words
            marks.append(code)
        elif kind == "Nd":
            digits.append(code)
        elif kind[0] == "L" or kind == "Nl":
            (unspaced if code in in_unspaced else letters).append(code)
        elif kind == "Pc":
            joining.append(code)
    # Beyond the first plane we use whole blocks: each additional range costs time at every character.
    beyond = "".join(_range(first, last) for first, last in _UNSPACED if last >= 0x10000)
    letter = _ranges(letters) + "\U00010000-\U000116ff\U00011750-\U0001afef\U0001b170-\U0001d7cd\U0001e000-\U0001efff"
    digit, join = _ranges(digits) + "\U0001d7ce-\U0001d7ff", _ranges(joining)
    mark = _ranges(marks) + _range(0xE0000, 0xE0FFF)
    character = f"[{_ranges(unspaced)}{beyond}][{mark}]*"
    inside = f"[{letter}{digit}{join}{mark}]+"
    word = (
        f"(?=[{join}]*[{letter}{digit}])[{letter}{digit}{join}]{inside[:-1]}*"
        f"(?:(?:(?<=[{letter}{mark}])[{_IN_LETTERS}](?=[{letter}])|(?<=[{digit}{mark}])[{_IN_DIGITS}](?=[{digit}])"
        f'|(?<=[\u05d0-\u05ea])"(?=[\u05d0-\u05ea])){inside})*'
    )
    return re.compile(f"(?:{character})+|{word}").findall, re.compile(character).findall


def _ranges(codes: list[int]) -> str:
    """Return ascending code points as ranges for a character class."""
    text, first = "", None
    for code, following in zip(codes, [*codes[1:], sys.maxsize], strict=True):
        first = code if first is None else first
        if following != code + 1:
            text += _range(first, code)
            first = None
    return text


def _range(first: int, last: int) -> str:
    return f"{re.escape(chr(first))}-{re.escape(chr(last))}"
