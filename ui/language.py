"""The screen in another language: every English text that a page shows, by a catalogue of sentences with placeholders.

English is the language of the ledger, the store, the statement and the log; what other processes wrote months ago is translated
where it is shown, with everything else. A sentence that the catalogue does not know stays English: it is never guessed, and
tests fail on it. Placeholders hold names, numbers and phrases; phrases are looked up again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

Language = Literal["English", "中文"]
SENTENCES = Path(__file__).parent / "static"
LANGUAGES: tuple[Language, ...] = ("English", "中文")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
SENTENCE_END = re.compile(r"(?<=[a-zδε0-9)’”%]\.) +(?=[A-Z0-9✕`])")  # not after an initial: "Dr K. Weber"
LISTING = re.compile(r"; |, | and ")
COUNTED = ("count", "number")  # placeholders that hold a number and nothing else
NUMBER = r"[\d,.]+"
WORDS = re.compile(r"\b[a-z]{2,} +[a-z]{2,}")  # two words in a row: a phrase, not a name


@dataclass(slots=True)
class Catalogue:
    """Sentences of one language. `missed` collects phrases that it does not know, for tests."""

    sentences: Mapping[str, str]
    missed: set[str] = field(default_factory=set)
    _patterns: dict[str, list[tuple[re.Pattern[str], str]]] = field(default_factory=dict)

    def patterns(self) -> dict[str, list[tuple[re.Pattern[str], str]]]:
        """Sentences with placeholders by their first word; made when they are first asked for."""
        if not self._patterns:
            by_length = sorted(self.sentences, key=lambda text: -len(PLACEHOLDER.sub("", text)))  # the most particular first
            found: dict[str, list[tuple[re.Pattern[str], str]]] = {}
            for english in filter(PLACEHOLDER.search, by_length):
                found.setdefault(first_word(english), []).append((pattern_of(english), self.sentences[english]))
            self._patterns = found  # at once: another thread may look
        return self._patterns

    def text(self, english: str) -> str:
        """A text of one or more lines and sentences."""
        lines = [self._line(line) for line in english.split("\n")]
        return "\n".join(lines)

    def _line(self, line: str) -> str:
        """A line; what is set in bold, and Markdown's two spaces at its end, are kept."""
        bare = line.strip()
        if not bare:
            return line
        if heading := re.match(r"#+ ", bare):
            return heading[0] + self._line(bare[heading.end() :])
        bold = re.fullmatch(r"\*\*(.+?)\*\*(.*)", bare)
        if bold:
            rest = self._line(bold[2]) if bold[2].strip() else bold[2]
            return f"**{self._line(bold[1])}**{rest}{'  ' if line.endswith('  ') else ''}"
        parts = SENTENCE_END.split(bare)
        if len(parts) > 1 and bare not in self.sentences:
            return "".join(self._line(part) for part in parts)
        whole = self._known(bare)
        if whole is not None:
            return whole
        if " · " in bare:
            return " · ".join(self._line(part) for part in bare.split(" · "))
        return self._value(bare) if LISTING.search(bare) else self._unknown(line)

    def _known(self, phrase: str) -> str | None:
        if phrase in self.sentences:
            return self.sentences[phrase]
        patterns = self.patterns()
        for pattern, translated in (*patterns.get(first_word(phrase), ()), *patterns.get("", ())):
            found = pattern.fullmatch(phrase)
            if found:
                values = {name: self._value(value) for name, value in found.groupdict().items()}
                return PLACEHOLDER.sub(lambda place: values[place[1]], translated)  # noqa: B023  (called at once)
        return None

    def _value(self, value: str) -> str:
        """What stood in a placeholder: a phrase, a list of phrases, or a name or number, which stays."""
        whole = self._known(value)
        if whole is not None:
            return whole
        parts = LISTING.split(value)
        if len(parts) > 1:
            known = [self._known(part) for part in parts]
            if not any(known) and any(WORDS.search(part) for part in parts):  # what somebody wrote, not a list
                return self._unknown(value)
            return "、".join(one or self._unknown(part) for one, part in zip(known, parts, strict=True))
        if " · " in value:
            return " · ".join(self._value(part) for part in value.split(" · "))
        return self._unknown(value)

    def _unknown(self, phrase: str) -> str:
        """Names, numbers and commands stay; a phrase does too, and is noted."""
        if WORDS.search(phrase) and not phrase.startswith("`"):
            self.missed.add(phrase.strip())
        return phrase


def _sentences(name: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((SENTENCES / f"{name}.json").read_text(encoding="utf-8"))
    return found


def pattern_of(english: str) -> re.Pattern[str]:
    """What a sentence with placeholders looks like once they are filled."""
    parts = PLACEHOLDER.split(english)
    texts, names = parts[::2], parts[1::2]
    phrase = "(?:(?! · )[^()])+?" if "(" in english else "(?:(?! · ).)+?"  # what stands in brackets has none of its own
    if " · " in english:
        phrase = ".+?"  # elsewhere a phrase ends where the next one begins
    holes = [f"(?P<{name}>{NUMBER if name in COUNTED else phrase})" for name in names]
    return re.compile("".join(re.escape(text) + hole for text, hole in zip(texts, [*holes, ""], strict=True)), re.DOTALL)


def first_word(text: str) -> str:
    """Under what a sentence is looked up: its first word, or nothing where that is a placeholder."""
    word = text.partition(" ")[0]
    return "" if PLACEHOLDER.search(word) else word


CATALOGUES: dict[Language, Catalogue] = {
    "中文": Catalogue(json.loads((SENTENCES / "chinese.json").read_text(encoding="utf-8")))
}


@lru_cache(maxsize=8192)
def translate(english: str, language: Language) -> str:
    """`english` in the reader's language; unchanged where that is English."""
    catalogue = CATALOGUES.get(language)
    return english if catalogue is None else catalogue.text(english)


def preferred(locale: str | None) -> Language:
    """The language that a browser asks for first."""
    return "中文" if (locale or "").lower().startswith("zh") else "English"


def translated(value: object, language: Language, keys: Iterable[str] = ()) -> object:
    """Texts inside a chart's description: all values under `keys`, at any depth."""
    if isinstance(value, dict):
        return {
            name: translate(one, language) if name in keys and isinstance(one, str) else translated(one, language, keys)
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [translated(one, language, keys) for one in value]
    return value
