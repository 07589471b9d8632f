"""The lab: a Debian machine with its own kernel, ZFS and libvirt, to test zvmsnap in.

From the bottom up: `settings`, `errors`, `progress`, `hostlock`, `command` (the host);
`bootstrap`, `image` (what is booted); `accel`, `qmp`, `machine` (one QEMU);
`states`, `instance` (frozen and running labs); `recipes` (how the named states are
made); `agent`, `shell`, `api` (what tests use); `bootsector`, `domains`, `guests` (the guest).
"""
