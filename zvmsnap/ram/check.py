"""Does a page image have the digests that its manifest says? Holes are not read."""

from __future__ import annotations

import threading

from zvmsnap.common.errors import ImageUnloadable
from zvmsnap.ram import page_image
from zvmsnap.ram.page_image import PAGES, REST, Digests, PageImage, RecordDigest
from zvmsnap.virt.save_image import Header


def check(image: PageImage, digests: Digests, given_up: threading.Event | None = None) -> Header:
    """Read all of both files. Raises ImageUnloadable with what is wrong, and OSError.

    `given_up`: nobody waits for that.
    """
    if page_image.file_digest(image.rest) != digests.rest:
        raise ImageUnloadable(f"{REST} of {image.name} does not match its checksum: it is damaged")
    header = page_image.read_rest(image).head(image.name).header
    digest = RecordDigest()
    for place, record in page_image.records(image.pages):
        digest.add(place, record)
        if given_up and given_up.is_set():
            break
    if digest.hexdigest() != digests.pages:
        raise ImageUnloadable(f"{PAGES} of {image.name} does not match its checksum: it is damaged")
    return header
