from zvmsnap.files.layout import Layout, System, layout

EXT4 = {"/dev/sda1": "ext4", "/dev/sda2": "swap", "/dev/sdb": "xfs", "/dev/vg/root": "ext4"}


def kinds() -> dict[str, str]:
    return EXT4


def nobody_asks() -> dict[str, str]:
    raise AssertionError


def name_of(device: str) -> str:
    return {"/dev/sda": "vda", "/dev/sdb": "vdb"}[device]


def test_one_system_has_its_own_mountpoints() -> None:
    system = System("/dev/vg/root", "linux", {"/boot/efi": "/dev/sda1", "/": "/dev/vg/root"})
    assert layout([system], nobody_asks, name_of, by_device=False) == Layout(
        (("/", "/dev/vg/root"), ("/boot/efi", "/dev/sda1")), made=False, needed=frozenset("/")
    )


def test_a_windows_has_drives() -> None:
    drives = {"D": "/dev/sdb1", "c": "/dev/sda2"}
    assert layout(
        [System("/dev/sda2", "windows", {"/": "/dev/sda2"}, drives)],
        nobody_asks,
        name_of,
        by_device=False,
    ) == Layout((("/D:", "/dev/sdb1"), ("/C:", "/dev/sda2")), made=True, is_windows=True)
    assert layout(
        [System("/dev/sda2", "windows")], nobody_asks, name_of, by_device=False
    ).places == (("/C:", "/dev/sda2"),)


def test_else_each_file_system_has_the_name_of_its_device() -> None:
    places = (("/vda1", "/dev/sda1"), ("/vdb", "/dev/sdb"), ("/vg-root", "/dev/vg/root"))
    assert layout([], kinds, name_of, by_device=False) == Layout(places, made=True)
    systems = [System("/dev/sda1", "linux"), System("/dev/sdb", "linux")]
    assert layout(systems, kinds, name_of, by_device=False).places == places
    assert layout(systems[:1], kinds, name_of, by_device=True).places == places


def test_no_two_have_the_same_name() -> None:
    known = {"/dev/a/b-c": "ext4", "/dev/a-b/c": "ext4", "btrfsvol:/dev/sda/@home": "btrfs"}
    names = [place for place, _ in layout([], lambda: known, name_of, by_device=False).places]
    assert names == ["/a-b-c", "/a-b-c_", "/vda-@home"]


def test_what_has_no_files_is_left_out() -> None:
    known = {"/dev/sda": "crypto_LUKS", "/dev/sdb": "unknown"}
    assert layout([], lambda: known, name_of, by_device=False).places == ()
