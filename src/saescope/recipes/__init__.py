"""Complete training runs as TOML, each with its arithmetic and the result to expect."""
