"""Our half of the part ``serve`` in peers.py: raw ids → titles where torch cannot be imported, on one core."""

import sys

sys.modules["torch"] = None  # an import of torch fails from here on

import machine as shared  # noqa: E402

from dssm_helpers.serving import Recommender  # noqa: E402


def serve(bundle: str, requests: str) -> dict[str, float]:
    server = Recommender.load(bundle)
    return shared.latency(lambda r: server.recommend(user=r["user_id"], history=r["history"], k=10), requests)


if __name__ == "__main__":
    shared.answer(serve)
