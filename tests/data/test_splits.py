"""Which examples are held out: written down once, as another choice would change every result."""

import dataclasses

import numpy as np
import pytest

from crate.data import splits
from crate.data.catalogue import DATASETS
from crate.errors import RunError

IMAGENET = dataclasses.replace(DATASETS["imagenet1k"], holdout=3)
IMAGENET21K = dataclasses.replace(DATASETS["imagenet21k"], holdout=3)
OPENWEBTEXT = dataclasses.replace(DATASETS["openwebtext"], holdout=4)
DATACOMP = dataclasses.replace(DATASETS["datacomp1b"], holdout=10)


def test_the_permutation():
    assert splits.permutation(10).tolist() == [2, 7, 5, 6, 1, 4, 3, 9, 0, 8]


def test_which_splits_are_cut_out_of_the_training_part():
    found = {name: splits.cut_out(dataset) for name, dataset in DATASETS.items()}
    both, none = ["validation", "test"], []
    assert found["imagenet1k"] == found["cifar10"] == found["openwebtext"] == ["validation"]
    assert found["imagenet21k"] == found["imagenet21k_fall11"] == found["datacomp1b"] == both
    assert found["imagenet1k_real"] == found["flowers102"] == found["coco"] == none
    assert not any(found[name] for name, dataset in DATASETS.items() if dataset.embedded)


def test_a_test_split_is_held_out_for_good_and_a_validation_split_for_those_who_use_it():
    assert splits.withheld(IMAGENET, "test") == []
    assert splits.withheld(IMAGENET, "validation") == ["validation"]
    assert splits.withheld(IMAGENET21K, "test") == ["test"]
    assert splits.withheld(IMAGENET21K, "validation") == ["validation", "test"]


def test_pictures():
    order = splits.permutation(10).tolist()

    def chosen(dataset, split, held_out_for="test"):
        found = splits.examples(dataset, split, 10, held_out_for)
        assert found.dtype == np.int64
        assert found.tolist() == sorted(found.tolist())
        return found.tolist()

    assert chosen(IMAGENET, "test") == chosen(IMAGENET, "train") == list(range(10))
    assert chosen(IMAGENET, "validation") == sorted(order[:3])
    assert chosen(IMAGENET, "train", "validation") == sorted(order[3:])
    assert chosen(IMAGENET21K, "validation") == sorted(order[:3])
    assert chosen(IMAGENET21K, "test") == sorted(order[3:6])
    assert chosen(IMAGENET21K, "train") == sorted(order[:3] + order[6:])
    assert chosen(IMAGENET21K, "train", "validation") == sorted(order[6:])


def test_shards_are_whole_and_as_few_as_have_the_pairs():
    pairs = np.array([4, 7, 2, 9, 5, 6, 3, 8, 1, 9])
    order = splits.permutation(10).tolist()  # with 2, 8, 6, 3, 7, 5, 9, 9, 4 and 1 pairs
    assert splits.shards(DATACOMP, "validation", pairs).tolist() == sorted(order[:2])
    assert splits.shards(DATACOMP, "test", pairs).tolist() == sorted(order[2:5])
    assert splits.shards(DATACOMP, "train", pairs).tolist() == sorted(order[:2] + order[5:])
    left = splits.shards(DATACOMP, "train", pairs, "validation")
    assert left.tolist() == sorted(order[5:])
    with pytest.raises(RunError, match="has 3 shards with 13 pairs, too few: validation and test"):
        splits.shards(DATACOMP, "train", pairs[:3])


def test_documents_are_counted_from_the_end():
    assert splits.documents(OPENWEBTEXT, "test") is None  # a part of its own
    assert splits.documents(OPENWEBTEXT, "train") == (0, None)
    assert splits.documents(OPENWEBTEXT, "train", "validation") == (4, None)
    assert splits.documents(OPENWEBTEXT, "validation") == (0, 4)
    no_test = dataclasses.replace(OPENWEBTEXT, folders={"train": "train"})
    assert splits.documents(no_test, "test") == (0, 4)
    assert splits.documents(no_test, "validation") == (4, 4)
    assert splits.documents(no_test, "train", "validation") == (8, None)


def test_embedded_examples_by_number_and_by_family():
    parts = splits.by_size(10, {"test": 2, "validation": 3})
    found = {split: part.tolist() for split, part in parts.items()}
    assert found == {"test": [2, 7], "validation": [1, 5, 6], "train": [0, 3, 4, 8, 9]}

    families = [name for k, name in enumerate("abcdefghij") for _ in range(k % 3 + 1)]
    parts = splits.by_family(families, {"test": 4, "validation": 2})
    names = [{families[place] for place in part} for part in parts.values()]
    order = ["abcdefghij"[place] for place in np.argsort(splits.permutation(10))]
    sizes = np.cumsum([families.count(name) for name in order])
    test = int(np.searchsorted(sizes, 4)) + 1
    validation = int(np.searchsorted(sizes, sizes[test - 1] + 2)) + 1
    assert names == [set(order[:test]), set(order[test:validation]), set(order[validation:])]
    assert np.concatenate([*parts.values()]).size == len(families)
