"""
Variables in the words of an instruction, and the quotes and escapes around them.

Every form takes time in proportion to what it works on: patterns are not turned into regular
expressions, of which some never end.

Spec: Dockerfile reference, "Environment replacement"; where it is silent, BuildKit's shell lexer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

#: ``$`` and one of these is a parameter of a shell, which a build has not.
_SPECIAL = "@*#?-$!"
#: How deep ``${a:-${b:-…}}`` may go.
_DEEPEST = 50
#: Characters that one word may become.
_LONGEST = 8 << 20
_SPACES = " \t\n\v\f\r\x85\xa0"


class VariableError(ValueError):
    """A word cannot be read, or a variable in it must be set and is not."""


class Expanded(msgspec.Struct, frozen=True):
    """
    A word whose variables are replaced.

    Attributes:
        text: It as a whole, without quotes and escapes.
        words: It split at spaces that are not quoted.
        used: The variables in it that are set.
        unset: Those that are not, and have nothing to take their place.
    """

    text: str
    words: tuple[str, ...]
    used: frozenset[str]
    unset: frozenset[str]


def expand(
    text: str,
    variables: Mapping[str, str],
    escape: str = "\\",
    *,
    keep_quotes: bool = False,
    quotes_mean_nothing: bool = False,
    keep_unset: bool = False,
) -> Expanded:
    """
    Replace the variables in *text*, and take its quotes and escapes away.

    Args:
        text: As it stands in the instruction.
        variables: Their values; what is not there becomes nothing.
        escape: The escape character of the Dockerfile.
        keep_quotes: Quotes stay where they are.
        quotes_mean_nothing: They are characters as any other, as in a here-document.
        keep_unset: What refers to a variable that is not set stays as it is written.

    Raises:
        VariableError: A quote or a brace is not closed, a form is unknown, or ``${x:?why}`` has it so.

    Example:
        >>> expand("${name:-nobody} 'and $name'", {"name": "Ada"}).text
        'Ada and $name'
    """
    lexer = _Lexer(text, variables, escape, keep_quotes, quotes_mean_nothing, keep_unset)
    try:
        whole, words = lexer.run()
    except VariableError as error:
        shown = text if len(text) <= 80 else f"{text[:80]}…"
        raise VariableError(f"{error} in {shown!r}") from None
    return Expanded(whole, tuple(words), frozenset(lexer.used), frozenset(lexer.unset))


def is_space(character: str) -> bool:
    """Is it white space, as Go has it?"""
    return character in _SPACES or (character > "\x7f" and character.isspace())


class _Words:
    """Words that are put together, character by character."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._parts: list[str] = []

    def add(self, character: str) -> None:
        if not is_space(character):
            self._parts.append(character)
        elif self._parts:
            self.end()

    def add_all(self, text: str) -> None:
        for character in text:
            self.add(character)

    def add_quoted(self, text: str) -> None:
        self._parts.append(text)

    def end(self) -> list[str]:
        if word := "".join(self._parts):
            self.done.append(word)
        self._parts.clear()
        return self.done


class _Lexer:
    def __init__(
        self,
        text: str,
        variables: Mapping[str, str],
        escape: str,
        keep_quotes: bool,
        quotes_mean_nothing: bool,
        keep_unset: bool,
    ) -> None:
        self._text = text
        self._at = 0
        self._variables = variables
        self._escape = escape
        self._keep_quotes = keep_quotes
        self._keep_unset = keep_unset
        self._keep_escapes = False
        self._depth = 0
        self._length = 0
        self.used: set[str] = set()
        self.unset: set[str] = set()
        self._special: dict[str, Callable[[], str]] = {"$": self._dollar}
        if not quotes_mean_nothing:
            self._special |= {"'": self._single, '"': self._double}

    def run(self) -> tuple[str, list[str]]:
        return self._until("", keep_escapes=False)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        self._at += 1
        return self._text[self._at - 1 : self._at]

    def _until(self, stop: str, *, keep_escapes: bool) -> tuple[str, list[str]]:
        """Read until the character *stop*, which is read too, or the end where it is empty."""
        before, self._keep_escapes = self._keep_escapes, keep_escapes
        self._depth += 1
        if self._depth > _DEEPEST:
            raise VariableError("braces are nested too deeply")
        parts: list[str] = []
        words = _Words()
        while character := self._peek():
            if character == stop:
                self._at += 1
                break
            if special := self._special.get(character):
                found = special()
                parts.append(found)
                # Quotes hold a word together; what a variable holds does not.
                (words.add_all if character == "$" else words.add_quoted)(found)
                continue
            self._at += 1
            if character != self._escape:
                parts.append(character)
                words.add(character)
                continue
            escaped = self._next()
            if keep_escapes:
                escaped = character + escaped
            parts.append(escaped)
            words.add_quoted(escaped)
        else:
            if stop:
                raise VariableError(f"there is no {stop!r}")
        self._depth -= 1
        self._keep_escapes = before
        return "".join(parts), words.end()

    def _single(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise VariableError("a single quote is not closed")
        found = self._text[self._at : end + 1]
        self._at = end + 1
        return found if self._keep_quotes else found[1:-1]

    def _double(self) -> str:
        quote = self._next() if self._keep_quotes else ""
        self._at += not self._keep_quotes
        parts = [quote]
        while character := self._peek():
            if character == "$":
                parts.append(self._dollar())
                continue
            self._at += 1
            if character == '"':
                return "".join((*parts, quote))
            # Before anything else the escape is a character as any other.
            if character == self._escape and self._peek() in {'"', "$", self._escape}:
                if self._keep_escapes:
                    parts.append(character)
                character = self._next()
            parts.append(character)
        raise VariableError("a double quote is not closed")

    def _name(self) -> str:
        first = self._peek()
        if first and first in _SPECIAL:
            return self._next()
        start = self._at
        if first.isdecimal():
            while self._peek().isdecimal():
                self._at += 1
        else:
            while (character := self._peek()) and (
                character.isalpha() or character.isdecimal() or character == "_"
            ):
                self._at += 1
        return self._text[start : self._at]

    def _value(self, name: str, *, needed: bool = True) -> str | None:
        value = self._variables.get(name)
        if value is None:
            self.unset.update({name} if needed else ())
        else:
            self.used.add(name)
            self._length += len(value)
            if self._length > _LONGEST:
                raise VariableError(f"its variables hold more than {_LONGEST} characters")
        return value

    def _dollar(self) -> str:
        self._at += 1
        if self._peek() == "{":
            return self._braces()
        name = self._name()
        if not name:
            return "$"
        value = self._value(name)
        if value is None:
            return f"${name}" if self._keep_unset else ""
        return value

    def _braces(self) -> str:
        start = self._at - 1
        self._at += 1
        name = self._name()
        operator = self._next()
        if operator == ":":
            operator += self._next()
        if not operator or operator == ":":
            raise VariableError("there is no '}'")
        if not name:
            raise VariableError("there is no variable within ${}")
        value = self._value(name, needed=operator in {"}", "#", "%", "/"})
        found = (value or "") if operator == "}" else self._operated(name, operator, value)
        return self._text[start : self._at] if value is None and self._keep_unset else found

    def _operated(self, name: str, operator: str, value: str | None) -> str:
        if operator == "/":
            return self._replaced(value or "")
        if operator not in {"-", "+", "?", "#", "%", ":-", ":+", ":?"}:
            raise VariableError(f"{operator!r} is no operator: there are - + ? # ## % %% / // and :- :+ :?")
        word = self._until("}", keep_escapes=operator in {"#", "%"})[0]
        if operator in {"#", "%"}:
            longest = word.startswith(operator)
            return _trimmed(word[longest:], value or "", longest=longest, end=operator == "%")
        unset = value is None or (operator[0] == ":" and not value)
        if operator[-1] == "-":
            return word if unset else value or ""
        if operator[-1] == "+":
            return "" if unset else word
        if unset and not (self._keep_unset and value is None):
            must = "must be set" if value is None else "must not be empty"
            raise VariableError(f"{name}: {word}" if word else f"{name} {must}")
        return value or ""

    def _replaced(self, value: str) -> str:
        every = self._peek() == "/"
        self._at += every
        pattern = _Pattern.parse(self._until("/", keep_escapes=True)[0])
        word = self._until("}", keep_escapes=True)[0]
        parts = []
        at = 0
        for start, end in pattern.matches(value):
            parts += [value[at:start], word]
            at = end
            if not every:
                break
            self._length += len(word)
            if self._length > _LONGEST:
                raise VariableError(f"it becomes longer than {_LONGEST} characters")
        return "".join((*parts, value[at:]))


def _trimmed(text: str, value: str, *, longest: bool, end: bool) -> str:
    """Without what matches at its beginning, or its *end*."""
    pattern = _Pattern.parse(text)
    if end:
        pattern, value = pattern.backwards, value[::-1]
    ends = pattern.ends(value, 0)
    left = value[ends[-1 if longest else 0] :] if ends else value
    return left[::-1] if end else left


class _Pattern:
    """
    A pattern in which ``*`` is any run of characters of a line, and ``?`` one.

    It is matched in one pass, by a number whose bit n says that n parts of it are matched so far.
    """

    _RUN, _ONE = "run", "one"

    def __init__(self, parts: list[str]) -> None:
        self._parts = parts
        self._bits: dict[str, int] = {}
        for number, part in enumerate(parts):
            self._bits[part] = self._bits.get(part, 0) | 1 << number
        self._runs = self._bits.get(self._RUN, 0)
        self._any = self._runs | self._bits.get(self._ONE, 0)
        self._whole = 1 << len(parts)

    @classmethod
    def parse(cls, text: str) -> _Pattern:
        parts: list[str] = []
        characters = iter(text)
        for character in characters:
            if character == "\\":
                escaped = next(characters, "")
                # The last two only so that they do not end the word.
                if not escaped or escaped not in "*?\\}/":
                    raise VariableError(f"the pattern {text!r} escapes what needs none: only * ? \\\\ do")
                parts.append(escaped)
            elif character != "*":
                parts.append(cls._ONE if character == "?" else character)
            elif parts[-1:] != [cls._RUN]:
                parts.append(cls._RUN)
        return cls(parts)

    @property
    def backwards(self) -> _Pattern:
        return _Pattern(self._parts[::-1])

    def ends(self, value: str, start: int, *, anywhere: bool = False) -> list[int]:
        """Where matches end that begin at *start*, or *anywhere* behind it."""
        # A run may be of no character at all; no two of them follow each other.
        first = state = 1 | (self._runs & 1) << 1
        found = [start] if state & self._whole else []
        for at in range(start, len(value)):
            character = value[at]
            step = state & self._bits.get(character, 0)
            if character != "\n":
                step |= state & self._any
            state = (step & ~self._runs) << 1 | step & self._runs
            state |= (state & self._runs) << 1
            if anywhere:
                state |= first
            if state & self._whole:
                found.append(at + 1)
            if not state:
                break
        return found

    def matches(self, value: str) -> Iterator[tuple[int, int]]:
        """Each longest match, from the left."""
        length = len(value)
        # Where one begins is where it ends, all read backwards.
        starts = [length - end for end in self.backwards.ends(value[::-1], 0, anywhere=True)]
        at = 0
        for start in reversed(starts):
            if start >= at:
                end = self.ends(value, start)[-1]
                # An empty one right behind another is none.
                if end > start or start > at or not at:
                    yield start, end
                at = max(end, start + 1) if end == start else end


__all__ = ["Expanded", "VariableError", "expand", "is_space"]
