"""The table of mutants keeps up with the sources; `mutate.py` runs it."""

from __future__ import annotations

import shlex
from collections import Counter

import mutate


def test_mutants_apply_once_and_name_tests_that_exist() -> None:
    mutants = mutate.table()
    assert len(mutants) >= 60
    assert Counter(m.name for m in mutants).most_common(1)[0][1] == 1
    for path in {m.path for m in mutants}:
        own = [m for m in mutants if m.path == path]
        mutate.with_choice(
            (mutate.ROOT / path).read_text(), own
        )  # each once, and none over another
    for mutant in mutants:
        files = [word for word in shlex.split(mutant.tests) if word.startswith("tests/")]
        assert files, mutant.name
        assert all((mutate.ROOT / file).is_file() for file in files), mutant.name
