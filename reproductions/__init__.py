"""Small published results, run again with saescope: ``python -m reproductions``.

One file per study says what was published, what is run here, and what our numbers must reach. Results are kept in
``results/`` and written up in ``docs/reproductions.md``; what has not changed is not run again.
"""
