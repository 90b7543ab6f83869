"""Recordings that are broken in every way there is a name for: each has a reason, and those beside it are served."""

from random import Random

import mutate
import pytest
from trials import break_recordings


@pytest.mark.parametrize("name", mutate.RECORDINGS)
def test_every_kind_of_damage(name, tmp_path, bench):
    break_recordings([name], Random(name), tmp_path, bench)
