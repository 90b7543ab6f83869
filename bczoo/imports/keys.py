"""Names of keys: those that recorders use, brought to those of the action space.

Place in the pipeline: formats name keys through here; :class:`Names` renames and drops them as the user asks, and keeps
account of what became of each.

Keys are called as the reference keyboard calls them (``w``, ``1``, ``Space``, ``LeftShift``, ``UpArrow``) and the
others alike (``LeftControl``, ``Enter``, ``F1``, ``Comma``). Codes without a name are kept as ``code_<number>``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from bczoo.imports.session import MOTIONS, POSITIONS, Event, Stream, in_order

# Codes of Windows, https://learn.microsoft.com/windows/win32/inputdev/virtual-key-codes
_CODES = {
    1: "mouse_left", 2: "mouse_right", 4: "mouse_middle", 5: "mouse_x1", 6: "mouse_x2",
    8: "Backspace", 9: "Tab", 13: "Enter", 19: "Pause", 20: "CapsLock", 27: "Escape", 32: "Space",
    33: "PageUp", 34: "PageDown", 35: "End", 36: "Home",
    37: "LeftArrow", 38: "UpArrow", 39: "RightArrow", 40: "DownArrow",
    44: "PrintScreen", 45: "Insert", 46: "Delete", 91: "LeftMeta", 92: "RightMeta", 93: "Menu",
    106: "NumpadMultiply", 107: "NumpadAdd", 109: "NumpadSubtract", 110: "NumpadDecimal", 111: "NumpadDivide",
    144: "NumLock", 145: "ScrollLock",
    # a recorder that does not tell left from right says 16, 17 or 18; games are played with the left ones
    16: "LeftShift", 17: "LeftControl", 18: "LeftAlt",
    160: "LeftShift", 161: "RightShift", 162: "LeftControl", 163: "RightControl", 164: "LeftAlt", 165: "RightAlt",
    186: "Semicolon", 187: "Equal", 188: "Comma", 189: "Minus", 190: "Period", 191: "Slash", 192: "Backquote",
    219: "LeftBracket", 220: "Backslash", 221: "RightBracket", 222: "Quote",
    **{ord(c.upper()): c for c in "0123456789abcdefghijklmnopqrstuvwxyz"},
    **{96 + i: f"Numpad{i}" for i in range(10)},
    **{111 + i: f"F{i}" for i in range(1, 25)},
}  # fmt: skip


def key_of_code(code: int) -> str:
    """The name of a key or mouse button by its virtual-key code of Windows; ``code_<number>`` where it has none."""
    return _CODES.get(code, f"code_{code}")


@dataclass
class Names:
    """Renames and drops inputs as the user asks.

    Args:
        wanted: new name by old name; an empty one drops the input.
        renamed: how many events of which old name went under which new one, the last time that all were read.
        dropped: how many events of which name were dropped, likewise.
        held: new names that are held at the end, likewise.
    """

    wanted: Mapping[str, str]
    renamed: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    held: list[str] = field(default_factory=list)

    def __call__(self, events: Sequence[Event] | Stream) -> Stream:
        """The events under their new names.

        Two keys may get one name. It is released when the last of them is.
        """
        return Stream(partial(self._named, events))

    def _named(self, events: Sequence[Event] | Stream) -> Iterator[Event]:
        holding: dict[str, set[str]] = {}  # old names that hold a new one
        renamed, dropped = Counter[tuple[str, str]](), Counter[str]()
        for event in in_order(events):
            new = self.wanted.get(event.name, event.name)
            if not new:
                dropped[event.name] += 1
                continue
            if new != event.name:
                renamed[event.name, new] += 1
            if new not in MOTIONS and new not in POSITIONS:
                held = holding.setdefault(new, set())
                (held.add if event.value else held.discard)(event.name)
                if held and not event.value:
                    continue
            yield event._replace(name=new)
        self.renamed, self.dropped = renamed, dropped
        self.held = sorted(name for name, by in holding.items() if by)
