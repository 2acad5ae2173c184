"""The users of :mod:`benchmarks.soak`, as a file for Locust, which runs in its own environment.

Every request leaves one line in the file ``--outcomes``, whatever becomes of it.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import gevent
from locust import HttpUser, between, events, task
from locust.argument_parser import LocustArgumentParser
from locust.clients import HttpSession

from benchmarks.soak import PATH, Order, Outcome, draw_order, judge, retry_after

ANSWER_SECONDS = 600

_numbers = itertools.count()


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--outcomes", required=True, help="file; a line of JSON for each request")
    parser.add_argument("--draw-seed", type=int, default=0)
    parser.add_argument("--draw-windows", type=int, nargs="+", default=[2, 4, 8, 24])
    parser.add_argument("--draw-sizes", type=json.loads, required=True)
    parser.add_argument("--burst-size", type=int, default=24)
    parser.add_argument("--burst-seconds", type=float, default=30.0)


def perform(client: HttpSession, order: Order, write: Callable[[Outcome], None]) -> Outcome:
    """Send one request; leave it when the order says so, if it is not answered by then."""
    outcome = Outcome("lost", "cut off", 0, 0.0, order)
    start = time.monotonic()
    try:
        # A timer that is caught closes the connection on its way out, as a client does that leaves.
        with gevent.Timeout(order.leaves_after_s, False):
            outcome = _send(client, order)
        if outcome.detail == "cut off" and order.leaves_after_s is not None:
            outcome = Outcome("left", "", 0, 0.0, order)
    except BaseException as error:
        outcome = replace(outcome, detail=f"cut off by {error!r}")
        raise
    finally:
        outcome = outcome.taking(time.monotonic() - start)
        write(outcome)
    return outcome


def _send(client: HttpSession, order: Order) -> Outcome:
    with client.post(
        PATH, json=order.body, timeout=ANSWER_SECONDS, name=order.kind, catch_response=True
    ) as answer:
        if answer.error is not None and answer.status_code == 0:
            kind, detail = "lost", repr(answer.error)
        else:
            is_stream = bool(order.body.get("stream"))
            kind, detail = judge(answer.status_code, answer.headers, answer.text, is_stream)
        if kind == "lost":
            answer.failure(detail)
        else:
            answer.success()
        wait = retry_after(answer.headers) if kind == "refused" else 0.0
        return Outcome(kind, detail, answer.status_code, 0.0, order, retry_after_s=wait)


class User(HttpUser):
    """What both kinds have: requests drawn from a seed, and a file for what became of them."""

    abstract = True

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self.random = random.Random(f"{options.draw_seed}/{next(_numbers)}")
        self.windows, self.sizes = options.draw_windows, options.draw_sizes
        self.file = Path(options.outcomes)

    def order(self) -> Order:
        return draw_order(self.random, self.windows, self.sizes)

    def write(self, outcome: Outcome) -> None:
        line = json.dumps(asdict(outcome)) + "\n"
        with self.file.open("a") as file:  # one write: lines of several users do not mix
            file.write(line)


class Painter(User):
    """Asks for one picture after the other, and waits as long as it is told to."""

    wait_time = between(0.1, 1.0)

    @task
    def paint(self) -> None:
        outcome = perform(self.client, self.order(), self.write)
        gevent.sleep(outcome.retry_after_s)


class Crowd(User):
    """Asks for more pictures at once than the server takes."""

    fixed_count = 1

    def wait_time(self) -> float:
        return float(self.environment.parsed_options.burst_seconds)

    @task
    def burst(self) -> None:
        orders = [self.order() for _ in range(self.environment.parsed_options.burst_size)]
        gevent.joinall([gevent.spawn(perform, self.client, order, self.write) for order in orders])
