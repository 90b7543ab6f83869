"""Recordings as they ship, in archives: the same windows as their folders give, a bounded cache, nothing half."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import os
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from synthetic import SIZE, write_recordings
from test_module import fit

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.data import cache
from bczoo.data.ahead import Ahead
from bczoo.data.cache import Cache, Pack
from bczoo.data.check import check
from bczoo.data.errors import RecordingError
from bczoo.data.index import open_index
from bczoo.data.listing import find_recordings
from bczoo.data.module import RecordingDataModule
from bczoo.data.view import view
from bczoo.data.windows import Plan

KEYBOARD = ActionSpace.keyboard_mouse()
pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|num_workers|litlogger|logger|TPU)")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BCZOO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("folders") / "recordings", 8)


def pack(folders: Path, target: Path, names: list[str], suffix: str = ".tar.gz", inside: str = "dataset/") -> Path:
    """A batch of some of the recordings."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(target.name + suffix)
    with tarfile.open(path, "w:gz" if suffix != ".tar" else "w") as tar:
        for name in names:
            tar.add(folders / name, f"{inside}{name}")
    return path


def batches(folders: Path, root: Path, per_batch: int = 2) -> Path:
    """All recordings in archives; the last one is not compressed."""
    names = sorted(p.name for p in folders.iterdir() if not p.name.startswith("."))
    for i in range(0, len(names), per_batch):
        last = i + per_batch >= len(names)
        pack(folders, root / f"batch_{i:05}", names[i : i + per_batch], ".tar" if last else ".tar.gz")
    return root


@pytest.fixture(scope="module")
def packed(folders, tmp_path_factory):
    return batches(folders, tmp_path_factory.mktemp("packed") / "batches")


@pytest.fixture
def brought(monkeypatch):
    """Paths of the packs that were brought."""
    paths = []
    original = cache._fetch
    monkeypatch.setattr(cache, "_fetch", lambda pack, *rest: (paths.append(pack.path), original(pack, *rest)))
    return paths


def windows(root, spread=False, **arguments) -> Counter:
    """How often each window was seen in an epoch: recording's own name, pixels, actions."""
    module = RecordingDataModule(
        str(root), batch_size=3, window=6, frame_size=SIZE, action_space="keyboard_mouse", **arguments
    )
    module.setup()
    seen: Counter = Counter()
    for loader in (module.train_dataloader(), module.val_dataloader()):
        index = loader.plan.index
        for batch in loader:
            for b, recording in enumerate(batch["recording"].tolist()):
                name = str(index.names[recording]).rpartition("/")[2] if recording >= 0 else ""
                pixels = batch["frames"][b].numpy().tobytes()
                keys = batch["actions"]["keys"][b].numpy().tobytes()
                seen[name, int(batch["start"][b]), hash(pixels), hash(keys)] += 1
    module.teardown()
    return seen


@pytest.mark.parametrize("workers", [0, 2])
def test_archives_give_the_windows_of_their_folders(folders, packed, workers):
    assert windows(packed, num_workers=workers, open_recordings=4) == windows(folders)


def test_archives_and_folders_may_lie_in_one_root_and_in_several(folders, tmp_path):
    names = sorted(p.name for p in folders.iterdir() if not p.name.startswith("."))
    mixed = tmp_path / "mixed"
    pack(folders, mixed / "below" / "batch_1", names[:3])
    for name in names[3:5]:
        (mixed / name).symlink_to(folders / name)
    single = pack(folders, tmp_path / "other", names[5:], ".tgz", inside="")
    index = open_index([mixed, single], KEYBOARD)
    assert sorted(name.rpartition("/")[2] for name in index.names) == names
    assert len(index.usable) == 8 and len(index.packs) == 2
    for recording in range(8):
        with index.reading(recording) as folder:
            assert (folder / "annotation.proto").is_file()
    assert not list(single.parent.glob("other.tgz/*")) and not (single.parent / ".bczoo").exists()


def test_a_second_start_unpacks_nothing_and_a_new_archive_alone_is_read(folders, tmp_path, brought):
    root = batches(folders, tmp_path / "batches", per_batch=4)
    first = open_index(root, KEYBOARD)
    assert brought == ["batch_00000.tar.gz", "batch_00004.tar"]
    again = open_index(root, KEYBOARD, cache=Cache(tmp_path / "empty"))
    assert len(brought) == 2 and again.names.tolist() == first.names.tolist()
    pack(folders, root / "new", ["rec-0"], inside="")
    changed = root / "batch_00004.tar"
    os.utime(changed, (1, 1))
    grown = open_index(root, KEYBOARD)
    assert brought[2:] == ["batch_00004.tar", "new.tar.gz"] and len(grown) == 9
    assert grown.steps(0)[0].tolist() == first.steps(0)[0].tolist()
    changed.unlink()
    assert len(open_index(root, KEYBOARD)) == 5 and len(brought) == 4


def test_the_order_goes_from_group_to_group(packed):
    index = open_index(packed, KEYBOARD)
    plan = Plan(index, index.usable, 6, 2, shuffle=True, seed=3, open_recordings=4)
    orders = []
    for epoch in range(4):
        groups = plan.groups(epoch)
        assert [len(group) for group in groups] == [2, 2] and sorted(np.concatenate(groups)) == [0, 1, 2, 3]
        recording = plan.epoch(epoch)[0].reshape(-1)
        turn = np.array([np.isin(index.pack_of[recording], group) for group in groups]).argmax(0)
        assert (np.diff(turn) >= 0).all() and turn[0] == 0 and turn[-1] == 1
        for number in (0, 1):  # within a group, recordings come in no order
            of_group = index.pack_of[recording[turn == number]]
            assert (np.diff(of_group) != 0).sum() > 2
        orders.append(tuple(np.concatenate(groups)))
        shares = [Plan(**{**vars(plan), "rank": r, "world_size": 2, "batch_size": 1}).epoch(epoch) for r in (0, 1)]
        together = np.stack([s[0] for s in shares], 1).reshape(-1)
        assert (together == recording[: len(together)]).all()
    assert len(set(orders)) > 1
    spread = Plan(index, index.usable, 6, 2, shuffle=False, spread=True, open_recordings=4)
    assert (np.diff(np.isin(index.pack_of[spread.epoch(0)[0].reshape(-1)], spread.groups(0)[1])) >= 0).all()


def test_the_order_depends_on_names_not_on_places(folders, packed, tmp_path):
    moved = batches(folders, tmp_path / "elsewhere" / "again")
    keys = []
    for root in (packed, moved):
        index = open_index(root, KEYBOARD)
        keys.append([a.tolist() for a in Plan(index, index.usable, 6, 2, shuffle=True, open_recordings=4).epoch(1)])
    assert keys[0] == keys[1]


def test_folders_are_spread_over_the_groups(folders, tmp_path):
    root = batches(folders, tmp_path / "batches")
    write_recordings(root, 1, 200)
    index = open_index(root, KEYBOARD)
    plan = Plan(index, index.usable, 6, 1, shuffle=True, open_recordings=2)
    recording = plan.epoch(0)[0].reshape(-1)
    for quarter in np.array_split(index.pack_of[recording] < 0, 4):
        assert 0.2 < quarter.mean() < 0.8


def test_a_resumed_training_sees_the_rest_of_the_epoch(packed, tmp_path):
    arguments = {"open_recordings": 4, "every": 3}
    whole = fit(packed, tmp_path / "whole", **arguments)
    broken = fit(packed, tmp_path / "broken", stop=5, **arguments)
    resumed = fit(packed, tmp_path / "broken", checkpoint=tmp_path / "broken/checkpoints/step=3.ckpt", **arguments)
    assert broken.seen["train"][:3] + resumed.seen["train"] == whole.seen["train"]


def test_the_cache_keeps_its_bound_and_drops_the_least_recently_used(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.tar").write_bytes(members(("rec/video.mp4", bytes(100_000))))
    packs = [Pack(tmp_path, row.pack, row.stamp) for row in find_recordings(tmp_path)]
    small = Cache(tmp_path / "small", 250_000 / 1e9)
    for number in (0, 1, 0, 2):
        with small.hold(packs[number]):
            pass
        time_passes(small)
    assert [small.has(pack) for pack in packs] == [True, False, True, False]
    with small.hold(packs[2]), small.hold(packs[0]) as held:
        time_passes(small)  # both are older now, but somebody reads them
        with small.hold(packs[3]):
            assert [small.has(pack) for pack in packs] == [True, False, True, True]
        assert len(list(held.rglob("video.mp4"))) == 1
    with small.hold(packs[1]):
        assert sum(small.has(pack) for pack in packs) == 2
    assert sorted(p.suffix for p in small.folder.iterdir()) == ["", "", ".lock", ".lock", ".lock"]


def time_passes(small: Cache) -> None:
    """Make what is there older, by name, so that the clock's resolution plays no part."""
    for entry in small.folder.iterdir():
        if entry.is_dir():
            stat = entry.stat()
            os.utime(entry, ns=(stat.st_atime_ns - 10**10, stat.st_mtime_ns - 10**10))


def test_too_small_a_cache_is_told_before_the_training(packed, tmp_path):
    def loader(**arguments):
        module = RecordingDataModule(str(packed), window=6, frame_size=SIZE, cache_dir=str(tmp_path / "c"), **arguments)
        module.setup()
        return module.train_dataloader()

    loader(open_recordings=2).close()
    one = max(open_index(packed, KEYBOARD).pack_sizes()[1]) / 1e9
    with pytest.raises(UserError, match=r"4 archives.*raise data.cache_gb"):
        loader(cache_gb=float(one * 2.5))
    loader(cache_gb=float(one * 2.5), open_recordings=4).close()
    for value in (0, -1, float("nan")):
        with pytest.raises(UserError, match="positive number of GB"):
            RecordingDataModule(str(packed), cache_gb=value)


def test_what_does_not_fit_in_the_cache_is_told(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("BCZOO_CACHE_GB", "0.000001")
    with pytest.raises(UserError, match=r"batch_00000.tar.gz has .* more than the cache"):
        open_index(batches(folders, tmp_path / "batches"), KEYBOARD)


def hold_and_count(packed, folder, counter, pack):
    original = cache._fetch

    def counting(*arguments):
        with counter.get_lock():
            counter.value += 1
        original(*arguments)

    cache._fetch = counting
    with Cache(folder).hold(pack) as held:
        assert len(list(held.rglob("annotation.proto"))) == 2


def test_processes_share_one_copy(packed, tmp_path):
    context = multiprocessing.get_context("fork")
    counter, wanted = context.Value("q", 0), open_index(packed, KEYBOARD).packs[0]
    workers = [
        context.Process(target=hold_and_count, args=(packed, tmp_path / "shared", counter, wanted)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert counter.value == 1


def killed_while_unpacking(folder, pack):
    def die(content, out):
        copy(content, out)
        os._exit(9)

    copy, shutil.copyfileobj = shutil.copyfileobj, die
    with Cache(folder).hold(pack):
        pass


def test_a_killed_process_leaves_nothing_half(packed, tmp_path):
    wanted, folder = open_index(packed, KEYBOARD).packs[0], tmp_path / "killed"
    worker = multiprocessing.get_context("fork").Process(target=killed_while_unpacking, args=(folder, wanted))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 9
    assert not Cache(folder).has(wanted) and [p for p in folder.iterdir() if p.name.startswith(".")]
    with Cache(folder).hold(wanted) as held:
        assert len(list(held.rglob("*.mp4"))) == 2
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_the_next_group_is_brought_ahead(packed, tmp_path):
    index = open_index(packed, KEYBOARD, cache=Cache(tmp_path / "ahead"))
    shutil.rmtree(tmp_path / "ahead", ignore_errors=True)  # the index may have been there
    plan = Plan(index, index.usable, 6, 2, shuffle=True, open_recordings=2)
    order = [int(p) for group in plan.groups(0) for p in group]
    with Ahead(plan, 0) as ahead:
        ahead.reach(next(plan.batches(0)))
        for _ in range(600):
            if index.cache.has(index.packs[order[1]]):
                break
            ahead._thread.join(0.1)
    ahead._thread.join(60)
    assert [index.cache.has(index.packs[p]) for p in order] == [True, True, False, False]


def members(*entries) -> bytes:
    """A tar file of (name, content or TarInfo options)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                for key, value in content.items():
                    setattr(info, key, value)
                tar.addfile(info)
    return out.getvalue()


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
BAD = {
    "a path out of it": (members(("../../escaped/annotation.proto", b"x")), "refused"),
    "a symbolic link": (members(("rec/annotation.proto", LINK)), "refused"),
    "a link within": (members(("rec/192x192.mp4", {"type": tarfile.SYMTYPE, "linkname": "video.mp4"})), "refused"),
    "a hard link": (members(("rec/video.mp4", {"type": tarfile.LNKTYPE, "linkname": "rec/other"})), "refused"),
    "a device": (members(("rec/video.mp4", {"type": tarfile.CHRTYPE, "devmajor": 1})), "refused"),
    "a pipe": (members(("rec/annotation.proto", {"type": tarfile.FIFOTYPE})), "refused"),
    "a file with holes": (members(("rec/video.mp4", {"type": tarfile.GNUTYPE_SPARSE})), "refused"),
    "a folder that is a file": (members(("annotation.proto/video.mp4", b"x")), "refused"),
    "a huge annotation": (members(("rec/annotation.proto", {"size": 2**30}))[:1024], "larger than"),
    "no archive": (b"not an archive, but long enough to be taken for a header" * 40, "damaged or cut off"),
    "nothing": (b"", "damaged or cut off"),
    "no recording": (members(("notes.txt", b"hello")), "holds no recording"),
}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("what", BAD)
def test_hostile_archives_are_named_and_leave_nothing(folders, tmp_path, what, suffix):
    data, said = BAD[what]
    root = tmp_path / "root"
    pack(folders, root / "good", ["rec-0"])
    (root / f"bad{suffix}").write_bytes(data if suffix == ".tar" else gzip.compress(data))
    before = {p for p in tmp_path.rglob("*") if "cache" not in p.parts[len(tmp_path.parts)]}
    index = open_index(root, KEYBOARD)
    assert index.names.tolist() == [f"bad{suffix}", "good.tar.gz/dataset/rec-0"]
    assert said in index.problems[0] and index.n_frames[1] > 0
    written = {p for p in tmp_path.rglob("*") if "cache" not in p.parts[len(tmp_path.parts)]} - before
    assert all(".bczoo" in p.parts for p in written)
    with pytest.warns(UserWarning, match=f"1 of 2 recordings are broken: bad{suffix}"):
        index.report()
    with pytest.raises(RecordingError, match=f"bad{suffix}"):
        index.report(strict=True)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.8])
def test_archives_that_are_cut_off_are_noticed_wherever_it_was(folders, tmp_path, suffix, share):
    path = pack(folders, tmp_path / "root" / "batch", ["rec-0", "rec-1", "rec-2"], suffix)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share) // 512 * 512])  # where a header could begin
    index = open_index(tmp_path / "root", KEYBOARD)
    assert len(index) == 1 and "damaged or cut off" in index.problems[0]


@pytest.mark.parametrize("rest", [b"", b"no header" * 300, bytes(100)], ids=["nothing", "garbage", "half a mark"])
@pytest.mark.parametrize("compressed", [False, True])
def test_an_archive_that_ends_where_a_header_should_be_is_noticed(folders, tmp_path, rest, compressed):
    path = pack(folders, tmp_path / "batch", ["rec-0", "rec-1"], ".tar")
    with tarfile.open(path) as tar:
        begin = tar.getmember("dataset/rec-1").offset
    data = path.read_bytes()[:begin] + rest
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / ("a.tgz" if compressed else "a.tar")).write_bytes(gzip.compress(data) if compressed else data)
    assert "damaged or cut off" in open_index(tmp_path / "root", KEYBOARD).problems[0]


def test_the_checksum_of_a_compressed_archive_is_compared(folders, tmp_path):
    path = pack(folders, tmp_path / "root" / "batch", ["rec-0", "rec-1"])
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    assert "damaged or cut off" in open_index(tmp_path / "root", KEYBOARD).problems[0]


def test_a_flipped_bit_in_a_compressed_archive_is_noticed(folders, tmp_path):
    path = pack(folders, tmp_path / "root" / "batch", ["rec-0"])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "damaged or cut off" in open_index(tmp_path / "root", KEYBOARD).problems[0]


def test_a_bomb_stops_at_the_bound(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    bomb = gzip.compress(members(("rec/video.mp4", bytes(30_000_000))))
    (tmp_path / "root" / "bomb.tar.gz").write_bytes(bomb)
    monkeypatch.setenv("BCZOO_CACHE_GB", "0.01")
    with pytest.raises(UserError, match=r"bomb.tar.gz unpacks to more than the cache of 0.01 GB"):
        open_index(tmp_path / "root", KEYBOARD)
    assert not list(Path(os.environ["BCZOO_CACHE_DIR"]).rglob("*.mp4"))


def test_check_and_view_read_archives(packed, tmp_path, capsys):
    report = check(str(packed), processes=2)
    assert report.recordings == 8 and report.decoded and report.status == 0
    view(f"{packed}/batch_00002.tar.gz/dataset/rec-2", str(tmp_path / "clip.mp4"), frames=4)
    assert (tmp_path / "clip.mp4").is_file()
    for missing in ("batch_00002.tar.gz/dataset/rec-7", "batch_00009.tar.gz/dataset/rec-7", "batch_00002.tar.gz"):
        with pytest.raises(UserError, match=r"batch_0000\d.tar.gz"):
            view(f"{packed}/{missing}", str(tmp_path / "none.mp4"))
