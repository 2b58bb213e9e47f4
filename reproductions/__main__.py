"""``python -m reproductions``: run what is missing, print a table, write the page. ``python -m reproductions 4 7`` for
some studies; ``--list`` says what would be run."""

from __future__ import annotations

import sys

from reproductions import absorption, annealing, consistency, ordering, pursuit, right_l0, shrinkage, target_l0
from reproductions.command import main

STUDIES = tuple(
    module.STUDY for module in (consistency, ordering, right_l0, absorption, shrinkage, annealing, target_l0, pursuit)
)

if __name__ == "__main__":
    sys.exit(main(STUDIES))
