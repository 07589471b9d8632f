from zvmsnap.files.copy_out import Copied
from zvmsnap.files.copy_progress import said, shown


def test_how_far_a_copy_is() -> None:
    assert said("/etc", Copied(3, 6 << 20), 2.0) == "/etc: 3 files, 6 MiB, 3.0 MiB/s"
    assert said("/etc", Copied(), 0.0) == "/etc: 0 files, 0 MiB, 0.0 MiB/s"
    with shown("/etc") as copied:
        assert copied == Copied()
