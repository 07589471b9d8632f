"""Point-in-time snapshots of running KVM guests on ZFS that can be brought back."""

__version__ = "0.1.0"
