"""What players answer with, checked before it is recorded and played.

Place in the pipeline: experts (:meth:`bczoo.games.game.Game.make_expert`), a game's own ``random`` and players of your
own (:mod:`bczoo.play.loop`) are asked for values; they are checked here, where it is still known who gave them.

A name that the action space lacks is an error. A name that it has and the game's bindings do not use is told once and
recorded as it is: it was pressed, it changes nothing, and an expert may be shared by games of which one has no jump.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace, BinnedGroup, Values
from bczoo.core.errors import UserError
from bczoo.games.bindings import MOUSE_BUTTON_NAMES, input_name, inputs_in

if TYPE_CHECKING:
    from bczoo.games.game import Expert, Game


NOTHING: frozenset[str] = frozenset()


class ValuesCheck:
    """Checks one player's values, step by step.

    Args:
        game: what is played.
        who: gave them, for the messages.
        space: of the player, where it is not the game's.
    """

    def __init__(self, game: Game, who: str, space: ActionSpace | None = None) -> None:
        self.where = f"game {game.name!r}: {who}"
        self.space = space or game.action_space
        self._listens = game.inputs
        self._names = {  # of every group; None where it is a number
            g.name: None if isinstance(g, BinnedGroup) else frozenset(n for n in g.names if not n.startswith("_"))
            for g in self.space.groups
        }
        listened = self._listens if space is None else frozenset()  # a player of another space may serve more games
        self._quiet = {  # names and groups that nothing has to be told of
            g: names if not listened or names is None else {n for n in names if input_name(g, n) in listened}
            for g, names in self._names.items()
        }
        self._deaf = {g for g, names in self._names.items() if names is None and listened and g not in listened}
        self._told: set[str] = set()

    def __deepcopy__(self, memo: Any) -> ValuesCheck:
        return self

    def __call__(self, values: Any) -> Values:
        """The values as they are.

        Raises:
            UserError: they are no values of the action space.
        """
        if not isinstance(values, Mapping):
            self._refuse(f"gave {arguments.shown(values)}, and not a dictionary", "")
        for group, value in values.items():
            quiet = self._quiet.get(group, NOTHING)
            if type(value) is list and quiet is not None:
                if not value or quiet.issuperset(value):
                    continue
            elif quiet is None and type(value) in (int, float) and math.isfinite(value):
                if value and group in self._deaf:
                    self._tell(group)
                continue
            self._look_closely(group, value)
        return values  # type: ignore[return-value]

    def _look_closely(self, group: Any, value: Any) -> None:
        """What is unusual: wrong, or of another type, or not bound."""
        if group not in self._names:
            known = sorted(self._names)
            hint = _suggest(group, known)
            flat = inputs_in(self.space)
            if group in flat:
                hint = f"; {group!r} is held as {_as_values(str(group), self.space)}"
            self._refuse(f"gave {arguments.shown(group)}, which is no group of the action space", hint)
        names = self._names[group]
        if names is None:
            if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
                self._refuse(f"gave {group}={arguments.shown(value)}, and not a finite number", "")
            if value and group in self._deaf:
                self._tell(group)
            return
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
            example = f"; did you mean [{value!r}]?" if isinstance(value, str) and value in names else ""
            self._refuse(f"gave {group}={arguments.shown(value)}, and not a list of names", example)
        for name in value:
            if not isinstance(name, str) or name not in names:
                self._refuse(
                    f"gave {arguments.shown(name)} in {group}, which it does not have", _hint(name, names, group)
                )
            if name not in self._quiet[group]:  # type: ignore[operator]
                self._tell(input_name(group, name))

    def _tell(self, unbound: str) -> None:
        if unbound not in self._told:
            self._told.add(unbound)
            warnings.warn(
                f"{self.where} uses {unbound!r}, to which the game does not listen, so it changes nothing; it listens "
                f"to {', '.join(sorted(self._listens))}",
                stacklevel=4,
            )

    def _refuse(self, what: str, hint: str) -> NoReturn:
        groups = ", ".join(
            f"{g} (a number)" if names is None else f"{g} (a list out of {', '.join(sorted(names))})"
            for g, names in self._names.items()
        )
        raise UserError(f"{self.where} {what}{hint}. Action space {self.space.name!r} takes a dictionary of {groups}")


class CheckedExpert:
    """An expert whose values are checked.

    Args:
        game: what it plays.
        expert: what the game's ``expert`` made.
    """

    def __init__(self, game: Game, expert: Expert) -> None:
        who = f"expert {type(expert).__name__}"
        for method in ("reset", "act"):
            if not callable(getattr(expert, method, None)):
                raise UserError(
                    f"game {game.name!r}: {who} has no method {method}; an expert has reset(seed) and act(frame, info)"
                )
        self.expert = expert
        self._check = ValuesCheck(game, who)

    def reset(self, seed: int) -> None:
        self.expert.reset(seed)

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> Values:
        return self._check(self.expert.act(frame, info))


def _hint(name: Any, names: Collection[str], group: str) -> str:
    buttons = {flat: button for button, flat in MOUSE_BUTTON_NAMES.items()}
    if group == "mouse_buttons" and name in buttons:
        return f"; did you mean {buttons[name]!r}?"
    if name in buttons:
        return f"; it is held as {{'mouse_buttons': [{buttons[name]!r}]}}"
    return _suggest(name, names)


def _suggest(name: Any, names: Collection[str]) -> str:
    low = {known.lower(): known for known in names}
    close = difflib.get_close_matches(str(name).lower(), low, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(low[one]) for one in close)}?" if close else ""


def _as_values(flat: str, space: ActionSpace) -> str:
    for group in space.groups:
        for name in () if isinstance(group, BinnedGroup) else group.names:
            if input_name(group.name, name) == flat:
                return f"{{{group.name!r}: [{name!r}]}}"
    return f"{{{flat!r}: 0}}"
