"""No module of these tests leaves a process or an unreaped child behind."""

from tests.leftovers import nothing_is_left as nothing_is_left
