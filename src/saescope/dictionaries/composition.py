"""One architecture out of two: an encoder with its activation from a host, a decoder or a geometry from a mix-in."""

from __future__ import annotations

from dataclasses import dataclass

from saescope.dictionaries.base import Dictionary, DictionaryConfig, architectures, register


def composed(
    part: type[Dictionary],
    host: type[Dictionary],
    fields: type[DictionaryConfig],
    name: str,
    *,
    saelens_name: str | None = None,
) -> type[Dictionary]:
    """The class in which ``part`` goes before ``host``, with the config fields of both; made and registered once."""
    known = architectures().get(name)
    if known is not None and issubclass(known, part) and issubclass(known, host):
        return known
    bases = (fields,) if issubclass(fields, host.Config) else (fields, host.Config)
    title = "".join(word.capitalize() for word in name.split("_"))
    config: type[DictionaryConfig] = dataclass(frozen=True, kw_only=True)(
        type(f"{title}Config", bases, {"__module__": part.__module__, "__annotations__": {}})
    )
    documentation = f"{(part.__doc__ or '').splitlines()[0]} The encoder is that of {host.__name__}."
    made = type(title, (part, host), {"Config": config, "__module__": part.__module__, "__doc__": documentation})
    return register(name, saelens_name=saelens_name)(made)
