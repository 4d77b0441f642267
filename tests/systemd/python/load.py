#!/usr/bin/env python3
"""Callers that never stop: `load.py PROFILE`. At SIGTERM it prints what became of their calls, as JSON.

Half of the threads keep their connection, half of them open one for each call. UNAVAILABLE is retried, as the API asks
for; anything else is a failed call, and so is one that is not answered for 20 s.
"""

import json
import signal
import sys
import threading
import time

import grpc

from bloom.agent.v1 import token_pb2, token_pb2_grpc

PATIENCE = 20
# A client waits for longer before it connects again; this one is to be there when it hurts.
OPTIONS = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.min_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 100)]

request = token_pb2.GetTokenRequest(name=sys.argv[1])
stopped = threading.Event()
lock = threading.Lock()
tally = {"calls": 0, "retried": 0, "failed": 0}
failures = {}
generations = set()


def connect():
    # Channels of the same target share a connection unless they are told not to.
    return grpc.insecure_channel("unix:///run/bloom-agent/agent.sock", OPTIONS + [("grpc.use_local_subchannel_pool", 1)])


def call(channel):
    deadline, retried = time.monotonic() + PATIENCE, 0
    while True:
        try:
            token = token_pb2_grpc.TokenServiceStub(channel).GetToken(request, timeout=PATIENCE).token
            with lock:
                tally["calls"] += 1
                tally["retried"] += retried
                generations.add(token.generation)
            return
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                with lock:
                    tally["failed"] += 1
                    failures[f"{error.code().name}: {error.details()}"] = True
                return
            retried += 1
            time.sleep(0.01)


def on_one_connection():
    with connect() as channel:
        while not stopped.is_set():
            call(channel)
            time.sleep(0.002)


def on_many_connections():
    while not stopped.is_set():
        with connect() as channel:
            call(channel)
        # Within the connections that one user may open in a second.
        time.sleep(0.02)


signal.signal(signal.SIGTERM, lambda *_: stopped.set())
threads = [threading.Thread(target=work) for work in (on_one_connection, on_many_connections) * 2]
for thread in threads:
    thread.start()
stopped.wait()
for thread in threads:
    thread.join()
print(json.dumps({**tally, "failures": sorted(failures), "generations": sorted(generations)}))
