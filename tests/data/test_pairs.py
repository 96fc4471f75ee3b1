"""Pairs: embedded ones and shards as img2dataset writes them, whole, damaged, odd."""

import dataclasses
import functools
import io
import os
import pickle
import re
import shutil
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from writers import add_member, cut, jpeg, places_in, write_pair_shards

from crate.data import pair_order, pair_shards, pairs, stand_ins
from crate.data.augment import training_view
from crate.data.captioned import DRAWING_PHRASES, captioned, name_of, with_article
from crate.data.captions import bert_vocabulary
from crate.data.catalogue import DATASETS
from crate.data.check import check
from crate.data.datasets import check_available
from crate.data.embedded import fashion_mnist
from crate.data.listing import index_path
from crate.data.pair_order import Order
from crate.data.pair_shards import list_pairs, places_path, read_shard, write_pair_index
from crate.data.pairs import MemoryPairs, ShardedPairs, open_pairs
from crate.data.prepare import prepare
from crate.errors import RunError, UsageError
from crate.runtime import Runtime
from crate.tasks.contrastive.recipe import Contrastive

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
RANKS = [Runtime(torch.device("cpu"), torch.float32, "test", rank, 2) for rank in range(2)]
SMALL = dataclasses.replace(DATASETS["datacomp1b"], holdout=5)
# nothing held out of what is trained on, or all of it to evaluate
WHOLE = dataclasses.replace(SMALL, folders={"train": "train", "test": "train"})
SHARDS, EACH = 9, 8
pytestmark = pytest.mark.usefixtures("one_thread")


def colour(number: int) -> tuple[int, int, int]:
    """Far apart for JPEG, one for each pair."""
    return 24 + number % 8 * 28, 24 + number // 8 % 8 * 28, 24 + number // 64 % 8 * 28


def pair(number: int) -> tuple[bytes, str]:
    return jpeg(colour(number)), f"pair {number}"


def encode(texts: list[str]) -> np.ndarray:
    return np.array([[int(text.split()[1]), len(text)] for text in texts], np.int64).reshape(-1, 2)


@pytest.fixture
def root(tmp_path) -> Path:
    """A data_root with nine shards of eight pairs."""
    write_pair_shards(tmp_path / "datacomp1b/train", [pair(k) for k in range(SHARDS * EACH)], EACH)
    return tmp_path


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    list_pairs.cache_clear()
    monkeypatch.setattr(pair_order, "GROUP", 2)


def make_recipe(**keys) -> Contrastive:
    base = {"dataset": "datacomp1b", "follows": [], "epochs": 1.0, "batch_size": 8, "lr": 1e-3}
    return Contrastive(**base | {"crop_area_min": 0.5} | keys)


def opened(root: Path, split: str = "train", dataset=SMALL, **keys):
    list_pairs.cache_clear()
    given = {"size": 8, "encode": encode, "runtime": CPU, "data_root": root, "bad_pairs": 1.0}
    return open_pairs(dataset, split, **given | keys)


def numbers(batches) -> list[int]:
    """Which pairs a run sees; each picture must be its caption's."""
    seen = []
    for pixels, ids in batches:
        assert (pixels.dtype, pixels.shape[1:]) == (torch.uint8, (3, 8, 8))
        assert (ids.dtype, ids.shape) == (torch.int64, (len(pixels), 2))
        for picture, (number, _) in zip(pixels, ids.tolist(), strict=True):
            distance = picture.float().mean((1, 2)) - torch.tensor(colour(number)).float()
            assert distance.abs().max() < 12
            seen.append(number)
    return seen


def same(first, second) -> bool:
    first, second = list(first), list(second)
    return len(first) == len(second) > 0 and all(
        torch.equal(a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def train(root: Path) -> Path:
    return root / "datacomp1b/train"


def rewrite(root: Path, **changed) -> None:
    """The shards with other pairs in some places: `_12=(picture, caption)`."""
    content = [changed.get(f"_{k}", pair(k)) for k in range(SHARDS * EACH)]
    write_pair_shards(train(root), content, EACH)


def of_group(source: ShardedPairs, seed: int, group: int, epoch: int = 0) -> set[int]:
    """The pairs of a group of an epoch."""
    shards = Order(source.shards.pairs, seed)._shards(epoch, group)
    names = [int(source.shards.path(shard).stem) for shard in shards]
    return {name * EACH + k for name in names for k in range(EACH)}


# --- order -----------------------------------------------------------


def test_an_epoch_sees_each_pair_at_most_once_and_epochs_differ(root):
    source = opened(root)
    assert len(source) == 64  # one shard is the test part's
    seen = numbers(source.training(make_recipe(), 3, 0, 16))
    first, second = seen[:64], seen[64:]
    assert len(set(first)) == len(set(second)) == 64
    assert set(first) == set(second)
    assert first != second
    assert numbers(source.training(make_recipe(), 4, 0, 8)) != first
    # what does not fill a batch waits for another epoch
    seven = numbers(source.training(make_recipe(batch_size=7), 3, 0, 9))
    assert seven == first[:63]


def test_shards_are_shuffled_and_the_pairs_of_a_group_too(root):
    source = opened(root)
    seen = numbers(source.training(make_recipe(), 3, 0, 8))
    for group in range(4):
        part = seen[group * 16 : (group + 1) * 16]
        assert set(part) == of_group(source, 3, group)
        assert part != sorted(part)
        assert len({number // EACH for number in part[:8]}) == 2  # both shards from the start
    order = Order(source.shards.pairs, 3)
    shuffled = {tuple(order._group(epoch, group)) for epoch in (0, 1) for group in range(4)}
    assert len(shuffled) == 8  # each in its own way
    shards = [order._epoch(epoch)[0].tolist() for epoch in (0, 1)]
    assert shards[0] != shards[1]
    assert list(range(8)) == sorted(shards[0]) == sorted(shards[1]) not in shards


def test_ranks_workers_and_the_first_update_change_nothing(root):
    recipe = make_recipe()
    whole = list(opened(root).training(recipe, 3, 0, 11))
    assert len({picture.numpy().tobytes() for pixels, _ in whole for picture in pixels}) > 70
    ranks = [list(opened(root, runtime=each).training(recipe, 3, 0, 11)) for each in RANKS]
    both = [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*ranks, strict=True)]
    assert same(both, whole)
    assert same(opened(root).training(recipe, 3, 6, 11), whole[6:])
    workers = make_recipe(compute={"workers": 2})
    assert same(opened(root).training(workers, 3, 0, 11), whole)


def test_evaluation_is_in_order_over_the_ranks(root):
    source = opened(root, "test")
    recipe = make_recipe()
    seen = numbers(source.evaluation(recipe, 3))
    assert seen == sorted(seen)
    assert len(seen) == len(source) == 8
    by_rank = [numbers(opened(root, "test", runtime=r).evaluation(recipe, 3)) for r in RANKS]
    assert by_rank == [seen[0::2], seen[1::2]]
    assert same(
        source.evaluation(make_recipe(compute={"workers": 2}), 3), source.evaluation(recipe, 3)
    )


def test_a_billion_pairs_need_no_memory_of_their_number(monkeypatch):
    """140,000 shards of 10,000: megabytes, and at once."""
    monkeypatch.setattr(pair_order, "GROUP", 25)
    order = Order(np.full(140_000, 10_000, np.int64), 0)
    order.slots(0, np.arange(10))  # torch's own first use
    tracemalloc.start()
    began = time.monotonic()
    places = 1_399_900_000 + np.arange(32_768)
    slots = order.slots(3, places)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6
    assert time.monotonic() - began < 5
    assert len(set(slots)) == 32_768
    assert len({slot[0] for slot in slots}) <= 2 * 25
    assert order.slots(3, places[20_000:]) == slots[20_000:]


def test_a_reader_travels_to_other_processes_without_its_files(root):
    source = opened(root)
    view = functools.partial(training_view, size=8, recipe=make_recipe())
    reader = pairs._PairReader(source.shards, Order(source.shards.pairs, 0), view)
    first = reader[0, 1, 0, 0]
    other = pickle.loads(pickle.dumps(reader))
    assert not other._open
    assert torch.equal(first[0], other[0, 1, 0, 0][0])


# --- splits -----------------------------------------------------------


def test_held_out_shards_are_whole_few_and_disjoint(root):
    parts = {split: opened(root, split) for split in ("train", "validation", "test")}
    names = {split: set(source.shards.names.tolist()) for split, source in parts.items()}
    assert len(names["validation"]) == len(names["test"]) == 1
    assert not names["validation"] & names["test"]
    assert (
        names["train"] == {path.name.encode() for path in train(root).glob("*.tar")} - names["test"]
    )
    spared = opened(root, held_out_for="validation").shards.names.tolist()
    assert set(spared) == names["train"] - names["validation"]
    more = opened(root, "test", dataclasses.replace(SMALL, holdout=17))
    assert len(more.shards.names) == 3
    kept = opened(root, dataset=dataclasses.replace(SMALL, holdout=17), held_out_for="validation")
    assert len(kept.shards.names) == 3
    with pytest.raises(UsageError, match="DataComp-1B: unknown split 'tset'; did you mean 'test'"):
        opened(root, "tset")


@pytest.mark.parametrize("holdout", [33, 40, 72, 100])
def test_too_few_shards_to_hold_anything_out(root, holdout):
    for split in ("train", "validation"):
        with pytest.raises(RunError) as caught:
            opened(root, split, dataclasses.replace(SMALL, holdout=holdout))
        assert str(caught.value).startswith(f"{train(root)}: has 9 shards with 72 pairs, too few: ")


# --- bad pairs -----------------------------------------------------------

BAD = {
    "_3": (pair(3)[0], ""),  # told by the header
    "_11": (pair(11)[0], None),
    "_20": (None, "pair 20"),
    "_27": (pair(27)[0], b"\xff\xfe caf\xe9"),
    "_35": (pair(35)[0], " \n\t "),
    "_44": (pair(44)[0][:200], "pair 44"),
    "_45": (b"<html>404</html>", "pair 45"),
}


def test_bad_pairs_are_replaced_by_others_of_their_group(root, capsys):
    clean = opened(root, dataset=WHOLE)
    where = {number: group for group in range(5) for number in of_group(clean, 3, group)}
    assert len(where) == 72
    rewrite(root, **BAD)
    capsys.readouterr()
    source = opened(root, dataset=WHOLE)
    told = capsys.readouterr().err.splitlines()
    assert [line.replace(f"warning: {train(root)}, train: ", "") for line in told] == [
        "2 keys without a caption (00000.tar/000000003, 00001.tar/000010003)",
        "1 key without a picture (00002.tar/000020004)",
    ]
    assert len(source) == 69
    seen = numbers(source.training(make_recipe(batch_size=1), 3, 0, 69))
    assert set(seen) == set(range(72)) - {3, 11, 20, 27, 35, 44, 45}
    assert [where[number] for number in seen] == sorted(where[number] for number in seen)
    assert source.bad == 7
    told = capsys.readouterr().err.splitlines()
    expected = {
        27: "00003.tar/000030003.jpg: its caption is not UTF-8 text; another pair comes instead",
        35: "00004.tar/000040003.jpg: its caption is empty; another pair comes instead",
        44: "00005.tar/000050004.jpg: cannot be read as an image (",
        45: "00005.tar/000050005.jpg: cannot be read as an image (its format is unknown); another "
        "pair comes instead",
    }
    assert len(told) == len(expected)
    for text in expected.values():
        assert any(line.startswith(f"warning: {train(root)}/{text}") for line in told)


def test_replacements_do_not_depend_on_ranks_workers_or_the_first_update(root):
    rewrite(root, **BAD)
    source = opened(root, dataset=WHOLE)
    whole = list(source.training(make_recipe(), 3, 0, 14))
    ranks = [opened(root, dataset=WHOLE, runtime=each) for each in RANKS]
    parts = [list(each.training(make_recipe(), 3, 0, 14)) for each in ranks]
    both = [tuple(map(torch.cat, zip(*some, strict=True))) for some in zip(*parts, strict=True)]
    assert same(both, whole)
    assert ranks[0].left_out == ranks[1].left_out == source.left_out == 3
    assert {*ranks[0]._met, *ranks[1]._met} == source._met
    assert ranks[0].bad == len(ranks[0]._met) + 3
    assert ranks[1].bad == len(ranks[1]._met)
    assert same(opened(root, dataset=WHOLE).training(make_recipe(), 3, 5, 14), whole[5:])
    loaders = opened(root, dataset=WHOLE)
    assert same(loaders.training(make_recipe(compute={"workers": 2}), 3, 0, 14), whole)
    assert loaders.bad == source.bad
    # an evaluated part keeps its size
    for split in ("validation", "test"):
        held = opened(root, split)
        assert len(numbers(held.evaluation(make_recipe(), 3))) == len(held)


def test_many_bad_pairs_are_counted_in_few_lines(root, capsys):
    rewrite(root, **{f"_{k}": (b"no picture", f"pair {k}") for k in range(0, 72, 3)})
    source = opened(root)
    list(source.training(make_recipe(), 0, 0, 24))
    told = capsys.readouterr().err.splitlines()
    assert 10 < source.bad <= 24
    assert len(told) == 4
    assert told[3] == "warning: 10 pictures that cannot be decoded so far"


def test_more_bad_pairs_than_are_borne_end_the_run(root):
    rewrite(root, **{f"_{k}": (b"no picture", f"pair {k}") for k in range(0, 72, 3)})
    assert len(list(opened(root, bad_pairs=0.5).training(make_recipe(), 0, 0, 8))) == 8
    for workers in (0, 2):
        source = opened(root, bad_pairs=0.2)
        recipe = make_recipe(compute={"workers": workers})
        with pytest.raises(RunError) as caught:
            list(source.training(recipe, 0, 0, 80))
        assert re.fullmatch(
            rf"{train(root)}: [\d.]+% of the pairs cannot be used, and 'bad_pairs' bears 20.0%: "
            r"\d+ of the \d+ read so far \(\d+ pictures that cannot be decoded\)",
            str(caught.value),
        )
    # a rank waits until it has seen as many as a batch of all ranks has
    source = opened(root, bad_pairs=0.0, runtime=RANKS[0])
    seen = source.training(make_recipe(batch_size=16), 0, 0, 9)
    next(seen)
    with pytest.raises(RunError, match=r"bears 0\.0%"):
        list(seen)


def test_what_headers_tell_counts_against_what_is_borne(root):
    rewrite(root, **{f"_{k}": (pair(k)[0], None) for k in range(0, 72, 4)})
    with pytest.raises(RunError) as caught:
        opened(root, dataset=WHOLE, bad_pairs=0.1)
    assert str(caught.value) == (
        f"{train(root)}: 25.0% of the pairs cannot be used, and 'bad_pairs' bears 10.0%: 18 keys "
        "without a caption (00000.tar/000000000, 00001.tar/000010000, 00002.tar/000020000, …)"
    )
    assert len(opened(root, dataset=WHOLE, bad_pairs=0.25)) == 54


def test_a_group_without_a_usable_pair_ends_the_run(root):
    rewrite(root, **{f"_{k}": (b"no picture", "pair 0") for k in range(72)})
    for workers in (0, 2):
        with pytest.raises(RunError, match=r"100 unusable pairs in a row; the last: .*as an image"):
            list(opened(root).training(make_recipe(compute={"workers": workers}), 0, 0, 1))


def test_pictures_that_are_bombs_or_lines_are_no_pictures(root, monkeypatch):
    line = jpeg((9, 9, 9), size=(3_000, 2))
    rewrite(root, _10=(line, "pair 10"), _50=(jpeg(colour(50), (200, 200)), "pair 50"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    source = opened(root, "test", WHOLE)
    seen = numbers(source.evaluation(make_recipe(eval_resize=8), 9))
    assert len(seen) == 72
    assert set(range(72)) - set(seen) >= {10, 50}
    assert source._kinds == {"pictures that are lines": 1, "pictures that cannot be decoded": 1}


# --- shards -----------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "place", "left"),
    [
        ("000020005.txt", 1, 6),  # right behind a pair's last member
        ("000020005.txt", 0, 5),  # a caption is lost, in its header
        ("000020005.txt", 0.998, 5),  # in a caption
        ("000020005.jpg", 1, 5),  # in a pair, between two members
        ("000020005.jpg", 0, 5),  # between two pairs: tarfile sees nothing wrong
        ("000020005.jpg", 0.5, 5),  # in a picture's header
        ("000020005.jpg", 0.9, 5),  # in a picture
    ],
)
def test_of_a_shard_that_is_cut_short_the_whole_pairs_are_used(root, capsys, member, place, left):
    shard = train(root) / "00002.tar"
    start, end = places_in(shard)[member]
    cut(shard, int(start + place * (end - start)))
    source = opened(root, "test", WHOLE)
    assert len(source) == 64 + left
    seen = numbers(source.evaluation(make_recipe(), 10))
    assert seen == [k for k in range(72) if not 16 + left <= k < 24]
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(
        f"warning: {train(root)}, test: 1 shard not whole, used before the damage (00002.tar "
    )
    known = place in (0.9, 0.998, 1) or member.endswith("txt")
    assert source.left_out == (known and left == 5)  # a part of it can still be seen
    assert len(told) == 1 + source.left_out
    assert len(opened(root)) < 64  # training goes on without what is lost


def test_a_damaged_header_ends_a_shard(root, capsys):
    shard = train(root) / "00007.tar"
    content = bytearray(shard.read_bytes())
    start, _ = places_in(shard)["000070003.jpg"]
    content[start : start + 8] = b"\xff" * 8
    shard.write_bytes(content)
    assert len(read_shard(shard)[0]) == 3
    assert "damaged at byte" in read_shard(shard)[2]


def test_what_is_no_tar_is_told_and_left_out(root, capsys):
    for number, content in enumerate((b"", b"<html>404</html>", os.urandom(4_000))):
        (train(root) / f"0000{number}.tar").write_bytes(content)
    source = opened(root, dataset=WHOLE)
    assert len(source) == 48
    told = capsys.readouterr().err
    assert told.startswith(f"warning: {train(root)}, train: 3 shards cannot be read (00000.tar ")
    assert told.count("\n") == 1
    for path in train(root).glob("*.tar"):
        path.write_bytes(b"nothing")
    with pytest.raises(RunError) as caught:
        opened(root)
    assert str(caught.value).startswith(
        f"{train(root)}: has no pairs: 9 shards cannot be read (00000.tar "
    )
    assert "\n" not in str(caught.value)
    for path in train(root).glob("*.tar"):
        path.unlink()
    with pytest.raises(RunError, match=r"has no shards \('\*.tar'\); download it with img2dataset"):
        opened(root)


def test_odd_members(tmp_path):
    """Folders, links, other files, upper case, any order, duplicates, hidden files."""
    train(tmp_path).mkdir(parents=True)
    with tarfile.open(train(tmp_path) / "odd.tar", "w") as tar:
        folder = tarfile.TarInfo("./some")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        add_member(tar, "./some/a.TXT", b"pair 1")
        add_member(tar, "b.png", jpeg(colour(2)))
        add_member(tar, "some/a.JPEG", jpeg(colour(1)))
        add_member(tar, "b.seg.png", b"another file of b")
        add_member(tar, "._b.jpg", b"what macOS adds")
        add_member(tar, "b.txt", "pair 2 of two\nlines é".encode())
        add_member(tar, "b.txt", b"pair 9 that comes later")
        add_member(tar, "a.jpg", jpeg(colour(3)))  # not some/a
        add_member(tar, "a.txt", b"pair 3")
        link = tarfile.TarInfo("c.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "b.png"
        tar.addfile(link)
        add_member(tar, "c.txt", b"pair 4")
        add_member(tar, "README", b"nothing")
        add_member(tar, "d.json", b"{}")
        add_member(tar, f"{'x' * 150}é.webp", jpeg(colour(5)))
        add_member(tar, f"{'x' * 150}é.txt", b"pair 5 " + b"long " * 5_000 + "é".encode() * 9_000)
    source = opened(tmp_path, "test", dataclasses.replace(WHOLE, folders={"test": "train"}))
    assert source.shards.left_out() == [
        "1 key without a picture (odd.tar/c)",
        "1 key there twice (odd.tar/b)",
    ]
    found = list(source.evaluation(make_recipe(), 9))
    assert numbers(found) == [1, 2, 3, 5]
    lengths = found[0][1][:, 1].tolist()
    assert lengths[:3] == [6, len("pair 2 of two\nlines é"), 6]
    assert 4_000 < lengths[3] <= 8_192


def test_a_shard_that_changes_while_it_is_used_is_no_more(root, capsys):
    source = opened(root)
    gone = source.shards.path(0)
    shutil.move(gone, root / "away")
    other = source.shards.path(1)
    other.write_bytes(other.read_bytes()[:3_000])
    seen = numbers(source.training(make_recipe(), 3, 0, 8))
    assert not set(seen) & {int(gone.stem) * EACH + k for k in range(EACH)}
    assert source._kinds["unreadable pairs"] == 16
    told = capsys.readouterr().err
    assert f"warning: {gone}, pair " in told
    assert told.count("warning") == 4


# --- the index -----------------------------------------------------------


def test_an_index_changes_nothing_and_no_header_is_read_again(root, capsys, monkeypatch):
    rewrite(root, **BAD)
    cut(train(root) / "00008.tar", 9_000)
    before = [list(opened(root, split).evaluation(make_recipe(), 9)) for split in ("train", "test")]
    updates = list(opened(root).training(make_recipe(), 3, 0, 9))
    warned = capsys.readouterr().err
    assert len(write_pair_index(train(root))) == len(list_pairs(train(root)))
    assert places_path(train(root)) == root / "datacomp1b/places-train.bin"
    monkeypatch.setattr(pair_shards, "read_shard", None)
    after = [list(opened(root, split).evaluation(make_recipe(), 9)) for split in ("train", "test")]
    assert all(map(same, after, before))
    assert same(opened(root).training(make_recipe(), 3, 0, 9), updates)
    assert capsys.readouterr().err == warned
    monkeypatch.undo()
    monkeypatch.setattr(pair_order, "GROUP", 2)
    places_path(train(root)).write_bytes(b"")  # without the places, headers are read: only slower
    assert same(opened(root).training(make_recipe(), 3, 0, 9), updates)


def test_several_processes_find_the_same(root):
    write_pair_index(train(root))
    one = [path.read_bytes() for path in (index_path(train(root)), places_path(train(root)))]
    write_pair_index(train(root), processes=2)
    assert one == [
        path.read_bytes() for path in (index_path(train(root)), places_path(train(root)))
    ]


def test_a_change_is_noticed_and_a_damaged_index_is_not_believed(root, capsys):
    write_pair_index(train(root))
    shard = train(root) / "00003.tar"
    os.utime(shard, (1, 1))
    assert len(opened(root)) == 64
    assert capsys.readouterr().err == (
        f"warning: {index_path(train(root))}: is out of date (00003.tar changed); listing "
        f"{train(root)} ('crate data prepare datacomp1b' makes it anew)\n"
    )
    write_pair_index(train(root))
    shutil.copy(shard, train(root) / "00010.tar")
    assert len(opened(root)) in (64, 72)
    assert "(00010.tar changed)" in capsys.readouterr().err
    (train(root) / "00010.tar").unlink()
    write_pair_index(train(root))
    content = index_path(train(root)).read_bytes()
    arrays = dict(np.load(io.BytesIO(content)))
    fewer = io.BytesIO()
    np.savez(fewer, **arrays | {"pairs": arrays["pairs"][1:]})
    for damaged in (b"", content[:200], fewer.getvalue()):
        index_path(train(root)).write_bytes(damaged)
        assert len(opened(root)) == 64
        assert ": is damaged" in capsys.readouterr().err


def test_prepare_and_check_say_what_is_there(root, capsys, monkeypatch):
    with pytest.raises(RunError) as caught:
        check_available(DATASETS["datacomp1b"], root / "elsewhere")
    assert str(caught.value).startswith(f"DataComp-1B is not at {root}/elsewhere/datacomp1b/train:")
    assert f"run 'crate data prepare datacomp1b --data-root {root}/elsewhere'" in str(caught.value)
    rewrite(root, **BAD)
    (train(root) / "00006.tar").write_bytes(b"no tar")
    there, wrong = check(SMALL, root)
    assert there[0] == f"{train(root)}: 9 shards, 61 pairs; no index"
    assert there[1].startswith(f"{train(root)}: 2 keys without a caption (00000.tar/000000003, ")
    assert wrong[0].startswith(f"{train(root)}: 1 shard cannot be read (00006.tar ")
    assert wrong[1].startswith(f"BERT's vocabulary is not at {bert_vocabulary(root)}: put vocab.tx")
    assert len(wrong) == 2
    assert prepare(SMALL, root) == [
        f"{index_path(train(root))} and places-train.bin: 61 pairs",
    ]
    assert "warning: " in capsys.readouterr().err
    bert_vocabulary(root).parent.mkdir()
    bert_vocabulary(root).write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    list_pairs.cache_clear()
    there, wrong = check(SMALL, root)
    assert there[0] == f"{train(root)}: 9 shards, 61 pairs; indexed"
    assert there[-1] == f"{bert_vocabulary(root)}: BERT's vocabulary"
    assert wrong[1] == f"{bert_vocabulary(root)}: is not the published file (its sha256 is another)"
    assert check(DATASETS["captioned_tiny"], root) == (
        ["captioned_tiny: embedded, complete (train 1,024, validation 256, test 256)"], []
    )  # fmt: skip


# --- embedded -----------------------------------------------------------


@pytest.fixture(scope="module")
def embedded() -> dict[str, list]:
    splits = DATASETS["captioned_pictures"].splits
    return {split: captioned(split, count) for split, count in splits.items()}


def test_embedded_pairs_share_no_picture_with_what_is_tested(embedded):
    pictures = {
        split: [p.tobytes() for pixels, _ in parts for p in pixels]
        for split, parts in embedded.items()
    }
    sets = {split: set(found) for split, found in pictures.items()}
    for split, count in DATASETS["captioned_pictures"].splits.items():
        assert len(pictures[split]) == len(sets[split]) == count
    assert len(set.union(*sets.values())) == sum(map(len, sets.values()))
    tested = {p.tobytes() for p in fashion_mnist("test")[0]}
    for name in stand_ins.CLIP_ART:
        for split in ("validation", "test"):
            pixels, _ = stand_ins.load(name, split, DATASETS[name].splits[split])
            tested |= {p.tobytes() for p in pixels}
    assert len(tested) > 12_000
    assert not tested & set.union(*sets.values())


def test_a_smaller_set_is_the_same_mixture(embedded):
    tiny = captioned("train", 1_024)
    for (pixels, texts), (every, all_texts) in zip(tiny, embedded["train"], strict=True):
        text_of = {p.tobytes(): text for p, text in zip(every, all_texts, strict=True)}
        assert [text_of[p.tobytes()] for p in pixels] == texts
    assert [len(texts) for _, texts in tiny] == [979, 45]


def test_captions_read_well(embedded):
    texts = [text for parts in embedded.values() for _, some in parts for text in some]
    for text in set(texts):
        assert re.fullmatch(r"[a-z][a-z -]*[a-z]\.", text), text
        assert not re.search(r"\ban? (?:a|an|the)\b|\ba [aeio](?!ne)|\ban [^aeiouh]| s\b", text), (
            text
        )
    photos, drawings = (
        {text for parts in embedded.values() for text in parts[which][1]} for which in (0, 1)
    )
    assert len(photos) == 60
    assert "a photo of an ankle boot." in photos
    assert "a grey photo of a pair of trousers." in photos
    assert len(drawings) > 800
    assert not any("photo of" in text for text in drawings)
    labels = stand_ins.load("fashion_mnist_pretrain", "validation", 5_000)[1]
    sandals = [
        text for text, label in zip(embedded["validation"][0][1], labels, strict=True) if label == 5
    ]
    assert len(sandals) > 400
    assert all(" sandal" in text for text in sandals)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("animals/birds/crow_01.png", "a crow"),
        ("animals/birds/penguin/plush_tux_anita_01.png", "a plush penguin"),
        ("animals/birds/somebody_else_02.png", "a bird"),
        ("buildings/homes/pinkhome3.png", "a pink house"),
        ("office/magnifying_glass_olivier_01.png", "a magnifying glass"),
        ("education/scissors_02.png", "scissors"),
        ("food/beverages/milk_ganson.png", "milk"),
        ("food/fruit/orange_wedge_bw.png", "an orange wedge"),
        ("computer/icons/flat-theme/action/ark_selectall.png", "a computer icon"),
        ("computer/icons/lemon-theme/devices/usbfloppy.png", "a floppy disk"),
        ("signs_and_symbols/flags/africa/chad.png", "the flag of chad"),
        ("signs_and_symbols/flags/america/united_states/usa_alaska.png", "the flag of alaska"),
        ("signs_and_symbols/flags/europe/france/france.png", "the flag of france"),
        ("signs_and_symbols/flags/america/costa_rica.png", "the flag of costa rica"),
        ("signs_and_symbols/flags/america/bahamas.png", "the flag of the bahamas"),
        ("signs_and_symbols/flags/semaphore/semaphore_echo.png", "a person with semaphore flags"),
        ("special/patterns/pattern-dot-grid-0003.png", "a pattern of dots"),
        ("unsorted/papera.png", "a duck"),
    ],
)  # fmt: skip
def test_what_a_drawing_is_called(file, name):
    assert with_article(name_of(file)) == name
    assert all(phrase.count("{}") == 1 for phrase in DRAWING_PHRASES)


def test_embedded_batches(embedded):
    dataset = DATASETS["captioned_tiny"]

    def lengths(texts: list[str]) -> np.ndarray:
        return np.array([[len(text), 7] for text in texts], np.int64)

    given = {"size": 14, "encode": lengths, "runtime": CPU, "data_root": "nowhere"}
    source = open_pairs(dataset, "train", **given)
    assert len(source) == 1_024
    assert source.bad == 0
    recipe = make_recipe(crop_area_min=1.0, batch_size=32)
    whole = list(source.training(recipe, 0, 0, 4))
    assert [tuple(pixels.shape) for pixels, _ in whole] == [(32, 3, 14, 14)] * 4
    assert [tuple(ids.shape) for _, ids in whole] == [(32, 2)] * 4
    ranks = [MemoryPairs(source.pixels, source.labels, size=14, runtime=each) for each in RANKS]
    parts = [list(each.training(recipe, 0, 0, 4)) for each in ranks]
    both = [tuple(map(torch.cat, zip(*some, strict=True))) for some in zip(*parts, strict=True)]
    assert same(both, whole)
    # grey pictures come first, then drawings in colour: each with its own caption
    pixels, ids = (torch.cat(x) for x in zip(*source.evaluation(recipe, 500), strict=True))
    grey = (pixels == pixels[:, :1]).flatten(1).all(1)
    assert grey[:979].all()
    assert not grey[979:].all()
    texts = [text for _, some in captioned("train", 1_024) for text in some]
    assert ids[:, 0].tolist() == [len(text) for text in texts]
    with pytest.raises(UsageError, match="unknown split 'tests'; did you mean 'test'"):
        open_pairs(dataset, "tests", **given)
