"""``SAE.from_pretrained(release, sae_id)``, as SAELens spells it: the same dictionaries, opened by :func:`saescope.load`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saescope.dictionaries import Dictionary


class SAE:
    """A name for those who come from SAELens; it has nothing but :meth:`from_pretrained`."""

    def __new__(cls, *_: object, **__: object) -> SAE:
        raise TypeError("SAE only has SAE.from_pretrained(release, sae_id); dictionaries are saescope.TopK and others")

    @staticmethod
    def from_pretrained(release: str, sae_id: str, device: str = "cpu", **how: Any) -> Dictionary:
        """Open a published dictionary.

        Args:
            release: of the registry, or a repository of the hub (``org/repo``).
            sae_id: its id, or its folder in that repository.
            how: as in :func:`saescope.load`.

        Raises:
            FileNotFoundError: there is none; the nearest are listed.
        """
        from saescope.formats.loading import load
        from saescope.formats.reference import published_source

        opening = {name: how.pop(name) for name in ("dtype", "mmap", "format") if name in how}
        source = published_source(release, sae_id, lenient=how.pop("lenient", False), overrides=how)
        return load(source, device=device, **opening)
