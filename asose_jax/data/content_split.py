"""Splits that depend on the bytes of the files alone, not on their names or their order."""

import collections
import hashlib

import numpy as np

_TRIES = 20  # keys, of which the first that gives a choice is taken


def choose(
    contents: np.ndarray, labels: np.ndarray, targets: np.ndarray, left: int, key: str
) -> np.ndarray | None:
    """Chooses about `targets[k]` images of each class k by the hashes of their contents.

    Images with the same content are chosen together, also if they belong to several classes. Each
    class gets at least one image. Without copies the images chosen are the first `targets[k]` of
    the class in the order of a hash of `key` and content. The choice is greedy; where it reaches a
    dead end, it is made again with other keys that follow from `key`.

    Args:
      contents: hash of each image's bytes, str `[N]`.
      labels: int32 `[N]`.
      targets: number of images to choose of each class, int `[K]`.
      left: number of different contents that each class must keep.
      key: another key gives another choice.

    Returns:
      Whether each image is chosen, bool `[N]`; `None` if no such choice was found.
    """
    for number in range(_TRIES):
        another = f'{key} {number}' if number else key
        if (chosen := _choose(contents, labels, targets, left, another)) is not None:
            return chosen
    return None


def _choose(
    contents: np.ndarray, labels: np.ndarray, targets: np.ndarray, left: int, key: str
) -> np.ndarray | None:
    """Does what `choose` does, with one key."""
    counts: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for content, label in zip(contents.tolist(), labels.tolist(), strict=True):
        counts[content][label] += 1

    def rank(content: str) -> bytes:
        return hashlib.blake2b(f'{key} {content}'.encode(), digest_size=16).digest()

    ranked = sorted(counts, key=rank)
    of_class: dict[int, list[str]] = collections.defaultdict(list)
    for content in ranked:
        for label in counts[content]:
            of_class[label].append(content)
    spare = {label: len(found) - left for label, found in of_class.items()}
    taken: collections.Counter[int] = collections.Counter()
    chosen: set[str] = set()

    def fits(content: str) -> bool:
        return all(taken[label] + n <= targets[label] for label, n in counts[content].items())

    def excess(content: str) -> int:
        return 0 if fits(content) else counts[content].total()

    def take(content: str) -> bool:
        if content in chosen or any(spare[label] < 1 for label in counts[content]):
            return False
        chosen.add(content)
        for label in counts[content]:
            spare[label] -= 1
        taken.update(counts[content])
        return True

    for label in sorted(of_class, key=lambda label: (len(of_class[label]), label)):
        # Contents that fit the targets come first, in their order; then those with few copies.
        if not taken[label] and not any(map(take, sorted(of_class[label], key=excess))):
            return None
    for content in ranked:
        if fits(content):
            take(content)
    return np.array([content in chosen for content in contents.tolist()], bool)


def proportional(sizes: np.ndarray, total: int) -> np.ndarray:
    """Distributes `total` over the classes in proportion to their sizes `[K]`, at least one each.

    By the method of largest remainders.
    """
    exact = sizes * (total / sizes.sum())
    shares = np.floor(exact).astype(int)
    largest = np.argsort(shares - exact, kind='stable')
    shares[largest[: total - shares.sum()]] += 1
    return np.maximum(shares, 1)
