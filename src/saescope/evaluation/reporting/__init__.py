"""Many results as one record, compared, in words and in pictures."""
