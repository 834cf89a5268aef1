"""A recommender under load, where torch cannot be imported: ``python benchmarks/load.py`` writes ``load.json``.

32 threads ask 100,000 requests, one in twenty odd: unknown and huge ids, histories of none and of ten thousand, wrong
types, titles and fields that do not exist. Meanwhile two threads add items, each its own in two editions by turns, and
another exchanges the recommender for that of the other of two bundles, as in notebook 09. Every outcome, an answer or
the message of a ValueError, has to be what a single thread gets of the same bundle in a state that the recommender was
in while it was asked.
"""

import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from random import Random
from tempfile import TemporaryDirectory

import machine as shared
import numpy as np

from dssm_helpers.serving import Recommender

REQUESTS, CLIENTS, ORDINARY, ODD = 100_000, 32, 300, 0.05
GENRES = (("Action", "Drama"), ("Comedy", "Horror"))  # of two items in their two editions


class Week:
    """A bundle as it is served; ``begun`` and ``done`` count how often each of the two items was added."""

    def __init__(self, bundle: str):
        self.bundle, self.server, self.begun, self.done = bundle, Recommender.load(bundle), [0, 0], [0, 0]
        for item in (0, 1):
            self.add(item)

    def add(self, item: int) -> None:
        edition = self.begun[item] % 2
        self.begun[item] += 1
        self.server.add_item(10**6 + item, f"New {item}.{edition}", genres=GENRES[item][edition])
        self.done[item] += 1


def requests(server: Recommender, draw: Random) -> list[tuple]:
    """User, history and k: the ordinary ones, then the odd."""
    users, items = (server.vocabularies[name].values.tolist() for name in ("user_id", "item_id"))
    asked, long = [], ([*items, *range(10**9, 10**9 + 10_000)][:10_000], [*range(10**9, 10**9 + 10_000)])
    for number in range(ORDINARY):
        user, seen, person = draw.choice(users), draw.sample(items, draw.randint(1, 50)), {"age": draw.randint(1, 90)}
        titles, new = [server.titles[item] for item in seen], [f"New {draw.randrange(2)}.{draw.randrange(2)}"]
        ways = [(user, seen), (user, titles), (None, seen), (person, None), (user, new), (user, seen, len(items) + 2)]
        asked.append(ways[number % len(ways)])
    histories = [[], *long, [2**80], [-1], [1.5], [None], [True], "a title", 5, {}, ["No such title"], ["x" * 10_000]]
    people = [10**12, 2**80, -1, "1", 7.5, [1], {"shoe": 43}, {"age": "old"}, {"age": -1}, {"gender": 2**80}, {}, None]
    asked += [(users[0], history) for history in histories] + [(user,) for user in people]
    return asked + [(users[0], None, k) for k in (0, -1, 10**9, "ten", None)]


def outcome(server: Recommender, request: tuple) -> object:
    try:
        return server.recommend(*request)
    except ValueError as refusal:  # anything else ends the run
        return str(refusal)


def alone(bundle: str, asked: list[tuple]) -> dict[tuple[int, int], list]:
    """The outcomes that a single thread gets, by the editions that are there."""
    found = {}
    for state in product((0, 1), repeat=2):
        week = Week(bundle)
        for item in np.flatnonzero(state):
            week.add(item)
        found[state] = [outcome(week.server, request) for request in asked]
    return found


def under_load(bundles: list[str], n: int, clients: int) -> dict[str, object]:
    """Ask ``n`` requests and check each outcome; figures of time and memory, and how many there were of each kind."""
    asked = requests(Week(bundles[0]).server, Random(0))
    expected = {bundle: alone(bundle, asked) for bundle in bundles}
    live, stop, memory = [Week(bundles[0])], threading.Event(), []

    def client(number: int) -> tuple[list[float], Counter]:
        draw, seconds, kinds = Random(number), [], Counter()
        for turn in range(n // clients):
            if number == 0 and turn in (n // clients // 10, n // clients - 1):
                memory.append(shared.memory("VmRSS") / 2**20)
            at = draw.randrange(ORDINARY) if draw.random() > ODD else draw.randrange(ORDINARY, len(asked))
            week = live[0]
            done, started = [*week.done], time.perf_counter()
            result = outcome(week.server, asked[at])
            seconds.append(time.perf_counter() - started)
            editions = [{n % 2 for n in range(first - 1, last)} for first, last in zip(done, week.begun, strict=True)]
            if not any(result == expected[week.bundle][state][at] for state in product(*editions)):
                raise AssertionError(f"{asked[at]!r:.200} got {result!r:.500}, which no single thread gets")
            kinds[getattr(result, "basis", "refused")] += 1
        return seconds, kinds

    def change(item: int) -> int:
        """Add one item until all is asked; after each twentieth time of the first, exchange the recommender."""
        added = 0
        while not stop.wait(0.01):
            live[0].add(item)
            added += 1
            if item == 0 and added % 20 == 0:
                live[0] = Week(bundles[added // 20 % 2])
        return added

    with ThreadPoolExecutor(clients + 2) as pool:
        changing, before = [pool.submit(change, item) for item in (0, 1)], shared.clocks()
        try:
            seconds, kinds = zip(*pool.map(client, range(clients)), strict=True)
        finally:
            stop.set()
        (wall, cpu), seconds = shared.clocks() - before, np.concatenate(seconds)
        added = [done.result() for done in changing]
    return {
        "clients": clients, "requests": len(seconds), "requests_per_second": len(seconds) / wall,
        "cpu_ms_per_request": 1e3 * cpu / len(seconds), "cores_used": cpu / wall,
        "p50_ms": 1e3 * np.quantile(seconds, 0.5), "p99_ms": 1e3 * np.quantile(seconds, 0.99),
        "mib_after_a_tenth": memory[0], "mib_at_the_end": memory[1],
        "kinds": sum(kinds, Counter()), "additions": sum(added), "exchanges": added[0] // 20,
    }  # fmt: skip


def main() -> None:
    from dssm_helpers.course.workspace import Workspace
    from dssm_helpers.serving import export_bundle

    ws = Workspace("ml-100k", progress=False)
    with TemporaryDirectory() as folder:
        bundles = [f"{folder}/{seed}" for seed in (0, 1)]
        for seed, bundle in enumerate(bundles):
            export_bundle(bundle, ws.trained("dssm", seed)[0], ws.data, ws.split.train)
        found = shared.ask(sys.executable, "load.py", "under_load", bundles=bundles, n=REQUESTS, clients=CLIENTS)
    shared.write_json(shared.HERE / "load.json", {"machine": shared.machine(), **found})


if __name__ == "__main__":
    if sys.argv[1:2] == ["under_load"]:
        sys.modules["torch"] = None  # an import of torch fails from here on
        shared.answer(under_load)
    else:
        shared.command_line(__doc__).parse_args()
        main()
