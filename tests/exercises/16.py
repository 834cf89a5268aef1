"""Wrong answers to the exercises of notebook 16."""

WINDOWS = "def letter_trigrams(word):\n    marked = f'#{{word}}#'\n    return {answer}\n"
ALL = "[marked[i : i + 3] for i in range(len(marked) - 2)]"
FUSE = "def fuse(scores, k=60):\n    return sum({term} for one in scores)\n"

WRONG = {
    "letter_trigrams": [
        (WINDOWS.format(answer="[marked[i : i + 3] for i in range(len(marked) - 3)]"), "its end"),
        (WINDOWS.format(answer="[marked[i : i + 3] for i in range(len(marked))]"), "is no trigram"),
        (WINDOWS.format(answer="[word[i : i + 3] for i in range(len(word) - 2)]"), "the marks are gone"),
        (WINDOWS.format(answer=f"sorted(set({ALL}), key=marked.index)"), "repeats are counted"),
        (WINDOWS.format(answer=f"set({ALL})"), "return a list"),
    ],
    "fuse": [
        (FUSE.format(term="1 / (k + 1 + one.argsort(axis=1).argsort(axis=1))"), "sort by the negative scores"),
        (FUSE.format(term="1 / (k + (-one).argsort(axis=1).argsort(axis=1))"), "rank 0"),
        (FUSE.format(term="1 / (k + 1 + (-one).argsort(axis=1))"), "one argsort lists"),
        (FUSE.format(term="1 / (k + 1 + (-one).argsort(axis=0).argsort(axis=0))"), "along the documents"),
        (FUSE.format(term="one"), "scores were added"),
        (FUSE.format(term="1 / (61 + (-one).argsort(axis=1).argsort(axis=1))"), "Is k used?"),
    ],
}
