"""The definitions of a clone: the one that its RAM belongs to, and the one for its next start."""

from __future__ import annotations

from collections.abc import Mapping

from zvmsnap.clone.domain_xml import CloneXml, as_clone
from zvmsnap.clone.identity import Identity, Network, refusal
from zvmsnap.clone.own_places import OwnPlaces
from zvmsnap.inventory.sharing import shared
from zvmsnap.journal.operation import CloneOperation, Source
from zvmsnap.points import definition
from zvmsnap.points.definition import definition_of
from zvmsnap.points.point import RestorePoint
from zvmsnap.virt import domain_xml


class CloneDefinitions:
    """Made of the point's, for the clone of an operation that has these places."""

    def __init__(self, point: RestorePoint, operation: CloneOperation, places: OwnPlaces) -> None:
        self._point = point
        self._operation = operation
        self._places = places

    def of_ram(self, xml: str | None = None) -> CloneXml:
        """That of the RAM; `xml` is the definition in the RAM image. Raises CloneImpossible."""
        xml = xml or definition_of(self._point, live=True)
        return self._as_clone(xml, self._operation.sources, cold=False)

    def for_next_start(self) -> CloneXml:
        """The persistent one. The RAM does not know of it, so things may be left out.

        Raises CloneImpossible.
        """
        sources = self._operation.next_sources
        if sources is None:
            sources = self._operation.sources
        return self._as_clone(definition_of(self._point), sources, cold=True)

    def refuse_shared(self) -> None:
        """The last check: raises CloneImpossible if the clone shares what one of both writes to."""
        own = [self.for_next_start().xml]
        if self._operation.memory:
            own.append(self.of_ram().xml)
        originals = (definition_of(self._point), definition_of(self._point, live=True))
        try:
            reasons = dict.fromkeys(why for xml in own for why in shared(xml, originals))
        except domain_xml.ParseError as error:
            reasons = {f"its definition cannot be read: {error}": None}
        if reasons:
            raise refusal(self._identity(None), "; ".join(reasons))

    def _as_clone(self, xml: str, sources: Mapping[str, Source], *, cold: bool) -> CloneXml:
        nvram = domain_xml.parse(xml).nvram
        own = own_nvram(self._operation.domain) if nvram else None
        return as_clone(xml, self._identity(own), sources, self._places, cold=cold)

    def _identity(self, nvram: str | None) -> Identity:
        return Identity(
            name=self._operation.domain,
            uuid=self._operation.uuid,
            point=self._operation.point,
            nvram=nvram,
            network=Network(self._operation.network),
        )


def own_nvram(name: str) -> str:
    """The path of the clone's own firmware variables: where libvirt has them, not the point."""
    return str(definition.NVRAM_DIR / f"{name}_VARS.fd")
