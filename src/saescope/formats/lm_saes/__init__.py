"""A `mongodump` of the Language-Model-SAEs workflow: from the bytes in `bson_files.py` up to `reading.py`."""
