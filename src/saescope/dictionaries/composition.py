"""One architecture out of two: an encoder with its activation from a host, a decoder or a geometry from a mix-in."""

from __future__ import annotations

import dataclasses
import inspect
import sys
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
    # what the host's config has by default stays so, unless the part says otherwise
    own = inspect.get_annotations(fields)
    kept = [field for field in dataclasses.fields(host.Config) if field.name not in own]
    defaults = {field.name: field.default for field in kept if field.default is not dataclasses.MISSING}
    namespace = {
        "__module__": part.__module__,
        "__annotations__": {field.name: field.type for field in kept if field.name in defaults},
        **defaults,
    }
    title = f"{host.__name__}{part.__name__}"
    config: type[DictionaryConfig] = dataclass(frozen=True, kw_only=True)(type(f"{title}Config", bases, namespace))
    documentation = f"{(part.__doc__ or '').splitlines()[0]} The encoder is that of {host.__name__}."
    made = type(title, (part, host), {"Config": config, "__module__": part.__module__, "__doc__": documentation})
    for cls in (made, config):  # found there by pickle
        setattr(sys.modules[part.__module__], cls.__name__, cls)
    return register(name, saelens_name=saelens_name)(made)
