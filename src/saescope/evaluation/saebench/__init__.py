"""SAEBench, both ways: our results in its format, our dictionaries in its hands."""
