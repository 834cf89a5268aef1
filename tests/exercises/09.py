"""Wrong answers to the exercises of notebook 09."""

WITHOUT = """def recommend_without(index, vector, seen, genres, unwanted, k):
    of_genre = {{item for item, names in genres.items() if {genre}}}
    {search}
    return {answer}
"""
ALL, HAS = "ids[0].tolist()", "unwanted in names"
BOTH = "ids, _ = index.search(vector, k, exclude=[seen | of_genre], allow_fewer=True)"

SERVE = """def serve(tower, index, vocabularies, user, history, k=10):
    batch = {{name: vocabularies[name].encode([value]) for name, value in user.items()}}
    {cut}
    batch["history"] = vocabularies["item_id"].encode({latest})[None, :]
    ids, _ = index.search(tower(batch), k, exclude=[set({seen})])
    return ids[0].tolist()
"""

WRONG = {
    "recommend_without": [
        (
            WITHOUT.format(
                genre=HAS,
                search="ids, _ = index.search(vector, k)",
                answer="[i for i in ids[0].tolist() if i not in seen | of_genre]",
            ),
            "1 answers, 3 exist",
        ),
        (
            WITHOUT.format(
                genre=HAS,
                search="ids, _ = index.search(vector, 2 * k, exclude=[seen])",
                answer="[i for i in ids[0].tolist() if i not in of_genre][:k]",
            ),
            "answers, 6 exist",
        ),
        (
            WITHOUT.format(genre=HAS, search="ids, _ = index.search(vector, k, exclude=[of_genre])", answer=ALL),
            "which was seen",
        ),
        (
            WITHOUT.format(genre=HAS, search="ids, _ = index.search(vector, k, exclude=[seen])", answer=ALL),
            "of that genre",
        ),
        (WITHOUT.format(genre="names == {unwanted}", search=BOTH, answer=ALL), "a horror comedy"),
        (WITHOUT.format(genre=HAS, search=BOTH, answer=ALL), "pads a short answer"),
        (
            WITHOUT.format(genre=HAS, search=BOTH.replace(", allow_fewer=True", ""), answer=ALL),
            "allow_fewer=True",
        ),
        (WITHOUT.format(genre=HAS, search=BOTH, answer="ids[0]"), "expected a list of ids"),
        (WITHOUT.format(genre=HAS, search=BOTH, answer="ids[0].tolist()[::-1]"), "the nearest first"),
    ],
    "serve": [
        (
            SERVE.format(cut="history = history[:50]", latest="history[::-1]", seen="history"),
            "after 70 movies the tower gets [1049",
        ),
        (SERVE.format(cut="history = history[-50:]", latest="history[::-1]", seen="history"), "seen long ago"),
        (SERVE.format(cut="latest = history[-50:]", latest="latest", seen="history"), "the oldest first"),
        (
            SERVE.format(cut="latest = history[-10:]", latest="latest[::-1]", seen="history"),
            "after 50 movies the tower gets",
        ),
    ],
}
