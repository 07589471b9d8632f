"""What two machines would share, by the inventory of their definitions.

| one definition names               | and another                | it is shared                  |
|------------------------------------|----------------------------|-------------------------------|
| what the inventory does not know   | any                        | nobody can tell, so it counts |
| a place                            | the same, one writes to it | yes                           |
| a place                            | the same, both read it     | no                            |
| a place                            | not                        | no                            |
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from zvmsnap.inventory import reader
from zvmsnap.inventory.resource import Kind


def shared(definition: str, originals: Iterable[str]) -> Iterator[str]:
    """Each thing that a machine of `definition` would share with one of `originals`: a reason.

    Raises ParseError.
    """
    is_written: dict[str, bool] = {}
    for original in originals:
        for resource in reader.resources_of(original):
            place = resource.place
            is_written[place] = is_written.get(place, False) or resource.writable
    for resource in reader.resources_of(definition):
        place = resource.place
        if resource.kind is Kind.UNKNOWN:
            yield f"whether {resource.called} is shared is not known: {place}"
        elif place != os.devnull and (
            is_written.get(place) or (resource.writable and place in is_written)
        ):
            yield f"{resource.called} would be shared with the original: {place}"
