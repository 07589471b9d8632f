"""Properties that a clone does not get from the dataset that it is to be like."""

from __future__ import annotations

# Fixed when a dataset is made, taken over from an origin, or of its keys: `zfs clone` refuses them.
FIXED = {
    "casesensitivity",
    "encryption",
    "keyformat",
    "keylocation",
    "normalization",
    "pbkdf2iters",
    "utf8only",
    "version",
    "volblocksize",
    "volsize",
}

# A clone has its own place, and no claim to room; nor is it shared, read-only or a container's
# because its origin is.
NOT_CLONED = {
    "canmount",
    "filesystem_limit",
    "jailed",
    "mountpoint",
    "quota",
    "readonly",
    "refquota",
    "refreservation",
    "reservation",
    "sharenfs",
    "sharesmb",
    "snapshot_limit",
    "zoned",
}
