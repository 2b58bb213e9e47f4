"""Neuronpedia's bulk layout, both ways: `layout.py` the names, `lines.py` the records, `export.py`, `reading.py`."""
