"""Does a page image have the digests that its manifest says? Holes are not read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from zvmsnap.bulk import progress
from zvmsnap.common.errors import ImageUnloadable
from zvmsnap.ram import page_image
from zvmsnap.ram.page_image import PAGES, REST, Digests, PageImage, RecordDigest, Rest
from zvmsnap.virt.save_image import Header


def check(image: PageImage, digests: Digests, given_up: threading.Event | None = None) -> Header:
    """Read all of both files. Raises ImageUnloadable with what is wrong, and OSError.

    `given_up`: nobody waits for that.
    """
    header = checked_rest(image, digests).head(image.name).header
    compare_pages(image, read_all(image.pages, "checked", given_up=given_up), digests)
    return header


def read_all(
    pages: int,
    what: str,
    *,
    take: Callable[[int, bytes], object] | None = None,
    given_up: threading.Event | None = None,
) -> RecordDigest:
    """The digest of all records of a file; `take` gets place and content of each.

    By that the image is `what`, as the progress says. Raises OSError.
    """
    digest = RecordDigest()
    with progress.shown(what, os.fstat(pages).st_size) as shown:
        for place, record in page_image.records(pages):
            digest.add(place, record)
            if take:
                take(place, record)
            shown.done_bytes = place
            if given_up and given_up.is_set():
                break
    return digest


def checked_rest(image: PageImage, digests: Digests) -> Rest:
    """Its rest, all of which was read and compared. Raises ImageUnloadable and OSError."""
    if page_image.file_digest(image.rest) != digests.rest:
        raise _damaged(REST, image)
    return page_image.read_rest(image)


def compare_pages(image: PageImage, digest: RecordDigest, digests: Digests) -> None:
    """Compare the digest of all its records. Raises ImageUnloadable."""
    if digest.hexdigest() != digests.pages:
        raise _damaged(PAGES, image)


def _damaged(name: str, image: PageImage) -> ImageUnloadable:
    return ImageUnloadable(f"{name} of {image.name} does not match its checksum: it is damaged")
